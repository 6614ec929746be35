"""`bigtransfer export`: a fine-tuned network as one file, preprocessing inside."""

from __future__ import annotations

import argparse
from pathlib import Path

from bigtransfer.api.models import MODEL_HELP, checkpoint_at
from bigtransfer.errors import ConfigError

_FORMATS = ("onnx", "torch")
_MOST_IMAGES = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("out", type=Path, metavar="OUT", help="file to write")
    parser.add_argument(
        "--format",
        default="onnx",
        choices=_FORMATS,
        help="onnx: for any runtime; torch: a program of torch.export (default: %(default)s)",
    )
    parser.add_argument(
        "--images",
        type=Path,
        metavar="FOLDER",
        help="compare on images of yours, up to 64 (default: drawn ones of many sizes)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Export, after a comparison with the network.

    Raises:
        BigTransferError: If the model cannot be used, or the program answers otherwise.
    """
    from bigtransfer.data.decoding import UndecodableError, decode_rgb
    from bigtransfer.model.checkpoint import read_tuned_meta
    from bigtransfer.serve.export import FORMATS, export
    from bigtransfer.serve.prediction import image_files

    suffix = FORMATS[arguments.format]
    if arguments.out.suffix != suffix:
        raise ConfigError(
            f"OUT is {str(arguments.out)!r}; a file of --format {arguments.format} is named "
            f"*{suffix}"
        )
    checkpoint = checkpoint_at(arguments.model)
    images = None
    if arguments.images is not None:
        images, settings = [], read_tuned_meta(checkpoint).decode
        for file in image_files([arguments.images])[:_MOST_IMAGES]:
            try:
                images.append(decode_rgb(file.read_bytes(), settings))
            except UndecodableError as error:
                raise ConfigError(f"--images: {str(file)!r} {error}; take it out") from error
    parity = export(checkpoint, arguments.out, arguments.format, images)
    print(
        f"{arguments.out}: uint8 (batch, height, width, 3) of any size in, probabilities out; "
        f"{parity.same_top1}/{parity.images} top-1 equal, "
        f"max |Δp| = {parity.largest_difference:.1g}"
    )
