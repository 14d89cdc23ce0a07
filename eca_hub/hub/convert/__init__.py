"""Convert checkpoints of other code to packages.

    checkpoint         a checkpoint of ECANet, torchvision, timm or mmdetection -> a package
    checkpoint_reader  a file -> tensors, without running code from it
    architecture       which network a state dict belongs to
    mmdetection        names of mmdetection's detectors -> names of torchvision's

The other way, from packages to other formats, is in `eca_hub.hub.export` and `eca_hub.hub.stock_timm`.
"""
