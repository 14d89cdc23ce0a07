"""Packages of three files: config.json, model.safetensors and README.md.

    pretrained       save a network as a package, load it again
    package          the files in a folder; config.json
    timm_format      config.json as timm and transformers read it
    detector_format  config.json of a detector
    card             README.md
    weights          safetensors -> tensors -> a network
    push             publish a package in one commit
    push_files       the files of that commit, with the card as it will be on the hub
    pull             download a package, and compare its bytes with the announced hashes
    hashes           the two hashes that a hub announces
    client           names of models and revisions; the client's exceptions as ours
    http_limits      limits on the client's requests
    convert          checkpoints of ECANet, torchvision, timm and mmdetection -> packages
    stock_timm       a network -> stock timm's, and back
    export           a network -> ONNX, torch.export, TorchScript

The card may show plots, which are published and pulled with it. Nothing else of a folder is published, pulled or read.
"""
