"""Fine-tunes an encoder with labels: all of it, its last blocks or a classifier alone; end to end or block by block.

    python -m blockjax.finetune --config finetune --config.backbone=runs/quickstart --workdir runs/finetune

The same as `python -m blockjax.main`, which knows the task by `objective=classification`; flags are the same.
"""

if __name__ == "__main__":
    from blockjax.main import main

    main()
