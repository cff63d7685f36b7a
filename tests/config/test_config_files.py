"""Where a config is found: by its path, or by the name of one that comes with blockjax."""

from pathlib import Path

import pytest

from blockjax.config import config_names, load_config
from blockjax.config.files import config_name, find_config

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(autouse=True)
def empty(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_every_config_has_its_files_name():
    assert config_names() == sorted(path.stem for path in CONFIGS.glob("*.py"))
    for name in config_names():
        assert find_config(name) == str(CONFIGS / f"{name}.py")


def test_a_name_takes_arguments():
    assert find_config("bim:model=b16,data=tfds:x") == f"{CONFIGS}/bim.py:model=b16,data=tfds:x"
    assert load_config("bim:model=ti4,size=32,data=embedded").model.patch_size == 4
    # Small recipes have as many tokens at any size.
    assert [load_config(f"mae:size={n}").model.patch_size for n in (0, 64, 96)] == [4, 8, 12]


def test_a_file_wins_over_a_name_and_a_folder_does_not(tmp_path):
    (tmp_path / "quickstart").mkdir()
    assert find_config("quickstart") == str(CONFIGS / "quickstart.py")
    (tmp_path / "digits").write_text("")
    assert find_config("digits") == "digits"
    (tmp_path / "mae.py").write_text("")
    assert find_config("mae.py:steps=3") == "mae.py:steps=3"


@pytest.mark.parametrize(
    "given, message",
    [
        ("quikstart", "--config quikstart: there is no such file; did you mean 'quickstart'"),
        ("configs/mae.py:steps=3", "--config configs/mae.py: .*; did you mean 'mae'"),
        ("simclr.py", "no such file; did you mean 'simclr'"),
        ("zzz:steps=3", "--config zzz: there is no such file; give the path of a config file, or"),
        ("zzz", "the name of one that comes with blockjax: barlow_twins, beit, .*vicreg$"),
        (".", "that is a folder"),
        ("", "--config is empty"),
    ],
)
def test_what_is_not_there_is_named_with_what_is(given, message):
    with pytest.raises(ValueError, match=message):
        find_config(given)
    with pytest.raises(ValueError, match=message):
        load_config(given)


@pytest.mark.parametrize(
    "given", ["text", "configs/text.py", "text:rate=1.5,data=text:/a/b.txt", "/a/text.py:blocks=2"]
)
def test_a_run_is_called_as_its_config(given):
    assert config_name(given) == "text"
