"""What a step is compiled for: the attached devices, or TPUs and NVIDIA GPUs by name, which need not be there."""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Mapping

import jax
from jax.experimental import topologies

GIB = 2**30

# Smallest slice that libtpu describes, and high-bandwidth memory of one device: GiB, and bytes a second
# (https://cloud.google.com/tpu/docs/system-architecture-tpu-vm). A tpu7x chip is two devices.
_TPUS = {
    "v4": ("2x2x1", 32, 1228e9),
    "v5e": ("2x2", 16, 819e9),
    "v5p": ("2x2x1", 95, 2765e9),
    "v6e": ("2x2", 32, 1638e9),
    "tpu7x": ("2x2x1", 96, 3690e9),
}

# The packages of which one has a platform's compiler, and the extra that installs it.
_COMPILERS = {
    "tpu": (("libtpu",), "tpu"),
    "cuda": (("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12"), "cuda13"),
}


@dataclasses.dataclass(frozen=True)
class _Gpu:
    """What XLA's GPU compiler asks of a device: NVIDIA's data sheets and the CUDA programming guide's limits."""

    description: str
    capability: tuple[int, int]
    cores: int
    fpus_per_core: int
    threads_per_core: int
    shared_memory_per_core: int  # bytes
    shared_memory_per_block: int  # bytes, the most a kernel may opt in to
    l2_cache: int  # bytes
    clock_ghz: float
    bandwidth: float  # bytes a second
    memory: int  # bytes

    def text(self) -> str:
        """The description as the text protocol buffer that XLA reads."""
        major, minor = self.capability
        return f"""
            gpu_device_info {{
              threads_per_block_limit: 1024 threads_per_warp: 32
              shared_memory_per_block: 49152 shared_memory_per_core: {self.shared_memory_per_core}
              shared_memory_per_block_optin: {self.shared_memory_per_block}
              threads_per_core_limit: {self.threads_per_core}
              core_count: {self.cores} fpus_per_core: {self.fpus_per_core}
              block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
              memory_bandwidth: {int(self.bandwidth)} l2_cache_size: {self.l2_cache}
              clock_rate_ghz: {self.clock_ghz} device_memory_size: {self.memory}
              cuda_compute_capability {{ major: {major} minor: {minor} }}
              registers_per_core_limit: 65536 registers_per_block_limit: 65536
            }}
            platform_name: "CUDA"
            dnn_version_info {{ major: 9 minor: 8 }}
            device_description_str: "{self.description}" """


_KIB, _MIB = 2**10, 2**20
_T4 = _Gpu(
    "Tesla T4", (7, 5), 40, 64, 1024, 64 * _KIB, 64 * _KIB, 4 * _MIB, 1.59, 320e9, 15 * GIB
)  # fmt: skip
_V100 = _Gpu(
    "Tesla V100-SXM2-16GB", (7, 0), 80, 64, 2048, 96 * _KIB, 96 * _KIB, 6 * _MIB, 1.53, 898e9, 16_151 * _MIB
)  # fmt: skip
_A100 = _Gpu(
    "NVIDIA A100-SXM4-80GB", (8, 0), 108, 64, 2048, 164 * _KIB, 163 * _KIB, 40 * _MIB, 1.41, 2039e9, 81_158 * _MIB
)  # fmt: skip
_L4 = _Gpu(
    "NVIDIA L4", (8, 9), 58, 128, 1536, 100 * _KIB, 99 * _KIB, 48 * _MIB, 2.04, 300e9, 23_034 * _MIB
)  # fmt: skip
_H100 = _Gpu(
    "NVIDIA H100 80GB HBM3", (9, 0), 132, 128, 2048, 228 * _KIB, 227 * _KIB, 50 * _MIB, 1.98, 3352e9, 81_008 * _MIB
)  # fmt: skip
_GPUS = {
    "t4": _T4,
    "v100": _V100,
    "a100-40": dataclasses.replace(
        _A100, description="NVIDIA A100-SXM4-40GB", bandwidth=1555e9, memory=40_370 * _MIB
    ),
    "a100": _A100,
    "l4": _L4,
    "h100": _H100,
    "h200": dataclasses.replace(
        _H100, description="NVIDIA H200 141GB HBM3e", bandwidth=4800e9, memory=144_384 * _MIB
    ),
}

# JAX takes this part of a GPU's memory unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
_GPU_FRACTION = 0.75


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices to compile for.

    Attributes:
      name: as it was given: local, h100, h100:8, v5e, v5e:4x4.
      kind: local, tpu or gpu.
      model: of the chip, as in the tables above; "" for local.
      layout: of the TPU slice ("4x4"), or the number of GPUs; "" for local and for a single TPU chip.
    """

    name: str
    kind: str
    model: str = ""
    layout: str = ""

    @property
    def limit(self) -> int | None:
        """Bytes of one device that JAX hands out by default; None for local, where the device itself is asked."""
        if self.kind == "tpu":
            return _TPUS[self.model][1] * GIB
        if self.kind == "gpu":
            return int(_GPUS[self.model].memory * _GPU_FRACTION)
        return None

    @property
    def bandwidth(self) -> float | None:
        """Bytes a second between a device and its memory, by its data sheet; None for local."""
        if self.kind == "tpu":
            return _TPUS[self.model][2]
        return _GPUS[self.model].bandwidth if self.kind == "gpu" else None

    def environment(self) -> dict[str, str]:
        """Environment variables of the process that compiles for it; XLA reads them when it starts."""
        if self.kind == "local":
            return {}
        if self.kind == "tpu":
            return {
                "JAX_PLATFORMS": "cpu",
                "TPU_SKIP_MDS_QUERY": "1",  # there is no cloud metadata server to ask
                "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # compiling needs no exclusive chip
            }
        # Both would time kernels on a device, which is not there.
        flags = "--xla_gpu_enable_triton_gemm=false --xla_gpu_autotune_level=0"
        return {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip(),
        }

    def devices(self) -> list[jax.Device]:
        """Returns its devices; to be called in a process with the environment above.

        Raises:
          ValueError: the compiler's package is missing, or does not know the layout.
        """
        if self.kind == "local":
            return jax.devices()
        if self.kind == "tpu":
            layout = self.layout or _TPUS[self.model][0]
            devices = self._describe("tpu", topology_name=f"{self.model}:{layout}")
            return devices if self.layout else devices[:1]
        return self._describe(
            "cuda", topology=f"1x1x{self.layout or 1}", target_config=_GPUS[self.model].text()
        )

    def _describe(self, platform, **description):
        modules, extra = _COMPILERS[platform]
        if not any(map(_is_installed, modules)):
            raise ValueError(
                f"compiling for {self.name} needs {' or '.join(modules)}, which is not installed (the device itself is "
                f"not needed): python -m pip install 'jax[{extra}]', the extra {extra} of blockjax"
            )
        try:
            return list(topologies.get_topology_desc(platform=platform, **description).devices)
        except Exception as error:
            reason = str(error).splitlines()[0][:200]
            raise ValueError(
                f"the compiler does not know the target {self.name!r}: {reason}"
            ) from error


def parse_target(name: str) -> Target:
    """Reads a target's name.

    Args:
      name: "local"; a GPU ("h100") or several in one host ("h100:8"); a TPU chip ("v5e") or a whole slice ("v5e:4x4").

    Raises:
      ValueError: an unknown name, or a layout that cannot be read; says what there is.
    """
    name = name.strip()
    model, colon, layout = name.lower().partition(":")
    if name == "local":
        return Target(name, "local")
    if model in _GPUS:
        if colon and not (layout.isdigit() and int(layout) > 0):
            raise ValueError(
                f"target {name!r}: put the number of GPUs after the colon, as in {model}:8"
            )
        return Target(name, "gpu", model, layout)
    if model in _TPUS:
        smallest = _TPUS[model][0]
        dimensions = smallest.count("x") + 1
        if colon and not re.fullmatch(rf"\d+(x\d+){{{dimensions - 1}}}", layout):
            raise ValueError(
                f"target {name!r}: put the slice's shape after the colon, in {dimensions} dimensions, as in "
                f"{model}:{smallest}"
            )
        if colon and math.prod(map(int, layout.split("x"))) < math.prod(
            map(int, smallest.split("x"))
        ):
            raise ValueError(
                f"target {name!r}: the smallest slice is {model}:{smallest}; {model} alone is one chip"
            )
        return Target(name, "tpu", model, layout)
    raise ValueError(
        f"target {name!r} is unknown; it may be local, a GPU ({', '.join(_GPUS)}; {next(iter(_GPUS))}:8 for eight) "
        f"or a TPU ({', '.join(_TPUS)}; v5e:4x4 for a slice)"
    )


def local_limit(device: jax.Device) -> int | None:
    """Returns the bytes that an attached device can hand out; the machine's memory for a CPU; None if unknown."""
    stats: Mapping[str, int] = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    if device.platform == "cpu" and hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def multiplies_bfloat16(device: jax.Device) -> bool:
    """Whether a device multiplies matrices of bfloat16; XLA refuses on NVIDIA GPUs before Ampere, as T4 and V100."""
    capability = getattr(device, "compute_capability", None)
    is_nvidia = re.fullmatch(r"\d+\.\d+", str(capability)) is not None
    return not is_nvidia or float(capability) >= 8.0


def _is_installed(module):
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
