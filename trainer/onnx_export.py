"""`python -m trainer export`: a run's network as one ONNX file that needs nothing of torch or of this trainer.

Normalisation, softmax or sigmoid, and the average over snapshots are inside. Views for test-time augmentation are not:
who wants their average shows the network several of them.
"""

import copy
import json
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from trainer.errors import TrainerError
from trainer.models.heads import ConcatPool
from trainer.rundir import write_atomically
from trainer.trained import Description, Trained

IMAGES, PROBABILITIES = "images", "probabilities"
MOST_BYTES = 2**31 - 2**20  # protobuf's limit, and some room for the graph
RESIZE = "shorter side to decoded_px, then to size_px, antialiased bilinear; then the middle square"


class LargestAndAverage(nn.Module):
    """What ConcatPool gives, without `adaptive_max_pool2d`, which torch 2.7 cannot translate."""

    def forward(self, maps: Tensor) -> Tensor:
        return torch.cat((maps.amax(dim=(2, 3)), maps.mean(dim=(2, 3))), dim=1)


def export(trained: Trained, path: Path) -> None:
    """Write the network to `path`.

    Its input `images` is uint8 (batch, 3, size_px, size_px), RGB; its output `probabilities` float32 (batch, class).
    Classes, sizes and the resize rule are in the file's metadata. Raises TrainerError where packages are missing or
    torch cannot translate the network, DiskFull, RunDirRefused.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401 (torch's exporter needs it)
    except ImportError as error:
        raise TrainerError(
            f"The export needs packages that are not here: {error.name}", "pip install onnx onnxscript"
        ) from error

    said = trained.description
    if sum(tensor.nbytes for tensor in trained.classifier.state_dict().values()) >= MOST_BYTES:
        raise TrainerError(f"{said.arch} is larger than an ONNX file can be, 2 GiB", "Export a smaller network")
    # Two, not one: torch takes a dimension of one for a constant.
    images = torch.zeros(2, 3, said.size_px, said.size_px, dtype=torch.uint8)
    try:
        with warnings.catch_warnings():
            # torch warns of its own graphs and of changes in its own modules; nothing that we could do about either.
            warnings.filterwarnings("ignore", module=r"(torch|onnxscript|copyreg)(\.|$)")
            program = torch.onnx.export(
                _translatable(trained),
                (images,),
                input_names=[IMAGES],
                output_names=[PROBABILITIES],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # torch's own, or whatever the packages below it raise
        why = str(error.__cause__ or error).partition("\n")[0].rstrip(".") or type(error).__name__
        what = f"torch {torch.__version__} cannot translate {said.arch} to ONNX: {why}"
        raise TrainerError(what, "Try newer torch, onnx and onnxscript, or another network") from error
    assert program is not None
    model = program.model_proto
    # torch notes on each node the Python files and lines that it came from, with this machine's paths.
    for noted in (model.graph, *model.graph.node, *model.graph.input, *model.graph.output):
        del noted.metadata_props[:]
    onnx.helper.set_model_props(model, _metadata(said))
    write_atomically(path, model.SerializeToString())


def _translatable(trained: Trained) -> nn.Module:
    classifier = copy.deepcopy(trained.classifier).cpu()
    for network in classifier.networks:
        for name, layer in network.named_children():
            if isinstance(layer, ConcatPool):
                setattr(network, name, LargestAndAverage())
    return classifier


def _metadata(said: Description) -> dict[str, str]:
    """ONNX's metadata are texts: what is not one is JSON."""
    return {
        "classes": json.dumps(said.classes, ensure_ascii=False),
        "multi_label": json.dumps(said.multi_label),
        "threshold": json.dumps(said.threshold),
        "size_px": str(said.size_px),
        "decoded_px": str(said.decoded_px),
        "resize": RESIZE,
        "channels": "RGB",
    }
