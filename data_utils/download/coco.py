"""The COCO images that the data names, and only those: one by one from the COCO site, or from its archive on disk."""

import contextlib
import io
import mmap
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from data_utils.download.outcome import FetchProgress, Outcome, fetch_all, size_text
from data_utils.download.placing import alone
from data_utils.download.web import LARGEST, Failure, Pace, Patience, get, retrying, size_of
from mmrole.base.errors import UserError, reason, shown
from mmrole.base.files import replacing
from mmrole.base.paths import files_below, open_regular

COCO_URL = "http://images.cocodataset.org/train2017"
"""Serves single files. Over https its certificate is that of the storage behind it, under another name."""
FOLDER = PurePosixPath("COCO/train2017")
"""Where they lie below the image folder."""
PUBLISHED = "10,839 images, about 1.8 GB"
NAMED_IN = ("dialogues", "data", "RM_data")
"""Folders of the layout whose JSON files name images."""

# Read as bytes: a training file has hundreds of megabytes, and names images in fields and in markup. Some writers
# escape the slashes.
_NAME = re.compile(rb"COCO\\?/train2017\\?/(\d{12}\.jpg)")
_MEAN_SIZE = (18 << 30) / 118_287  # bytes of COCO's archive over its images
_SAMPLE = 20
_JPEG, _SCAN, _END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"


class NoNamesError(UserError):
    """Nothing on disk tells which images are needed."""


def needed_images(data_root: Path, sources: Sequence[Path] = ()) -> list[str]:
    """The file names (`000000000009.jpg`) of the COCO images that JSON files name, sorted.

    Args:
        data_root: a folder in the published layout.
        sources: files and folders to read instead of the layout's dialogues and data.

    Raises:
        NoNamesError: there is no JSON file.
        UserError: one cannot be read.
    """
    sources = sources or [data_root / folder for folder in NAMED_IN]
    files = sorted({file for source in sources for file in _json_files(source)})
    if not files:
        looked = ", ".join(map(str, sources))
        raise NoNamesError(f"no JSON file that could name images in {looked}; fetch the data set first (target data)")
    return sorted({name for file in files for name in _names(file)})


def select_missing(names: list[str], image_dir: Path, verify: bool = False) -> list[str]:
    """Those of the images that are not in `image_dir`, or, with `verify`, cannot be decoded there."""

    def is_there(name: str) -> bool:
        path = image_dir / FOLDER / name
        try:
            return path.stat().st_size > 0 and not (verify and image_fault(path.read_bytes()))
        except FileNotFoundError:
            return False
        except OSError as error:
            raise UserError(f"cannot read {path}: {reason(error)}") from None

    if not verify:
        return [name for name in names if not is_there(name)]
    with FetchProgress("images: checking", len(names)) as progress, ThreadPoolExecutor(os.cpu_count()) as pool:
        missing = []
        for name, there in zip(names, pool.map(is_there, names), strict=True):
            missing += [] if there else [name]
            progress.add_file()
    return missing


def fetch_images(
    names: list[str],
    image_dir: Path,
    read: Callable[[str], bytes],
    outcome: Outcome,
    pace: Pace,
    workers: int,
) -> None:
    """Writes images into `image_dir/COCO/train2017`, each only when it is whole.

    Args:
        names: file names.
        image_dir: the image folder, made as needed.
        read: returns the verified content of an image, or raises `Failure`: `from_web` or `from_zip`.
        outcome: receives what was fetched and what failed.
        pace: as `from_web` got it.
        workers: threads.

    Raises:
        UserError: the folder cannot be written, or another process is fetching into it.
    """
    with FetchProgress("images", len(names)) as progress:

        def fetch(name: str) -> int:
            data = read(name)
            with replacing(image_dir / FOLDER / name) as file:
                file.write(data)
            progress.add_bytes(len(data))
            return len(data)

        with alone(image_dir / FOLDER):
            fetch_all(names, fetch, outcome, progress, pace, workers)


def from_web(url: str, patience: Patience, pace: Pace) -> Callable[[str], bytes]:
    """Reads images over HTTP, `url/NAME`, and tries again when one does not arrive whole.

    Raises:
        UserError: there is no such server, or no network.
    """

    def read_once(name: str) -> bytes:
        data = get(f"{url}/{name}", patience.timeout)
        if fault := image_fault(data):
            raise Failure(fault, transient=True)
        return data

    return lambda name: retrying(lambda: read_once(name), patience, pace)


def check_reachable(url: str, name: str, timeout: float) -> None:
    """Asks for one image's size, so that a dead network is said at once, and not after every file's retries.

    Raises:
        UserError: no connection. Any answer of a server will do.
    """
    try:
        size_of(f"{url}/{name}", timeout)
    except Failure as failure:
        if failure.status is None:
            raise UserError(
                f"cannot reach {url}: {failure}; check the network (http_proxy names a proxy), or give --coco_url or "
                "--coco_zip"
            ) from None


@contextlib.contextmanager
def from_zip(path: Path) -> Iterator[Callable[[str], bytes]]:
    """Reads images from an archive of the COCO project, wherever in it `train2017/NAME` or a bare `NAME` lies.

    Raises:
        UserError: the archive cannot be opened.
    """
    with _opened(path) as archive:
        members = _members(archive)

        def read(name: str) -> bytes:
            if name not in members:
                raise Failure("not in the archive")
            data = _unpacked(archive, members[name])
            if fault := image_fault(data):
                raise Failure(f"{fault} in the archive")
            return data

        yield read


def zip_sizes(path: Path) -> dict[str, int]:
    """The sizes in bytes of the images in an archive of the COCO project, by file name.

    Raises:
        UserError: the archive cannot be opened.
    """
    with _opened(path) as archive:
        return {name: member.file_size for name, member in _members(archive).items()}


def estimate_size(names: list[str], url: str, timeout: float, pace: Pace) -> str:
    """How large the images will about be, for people, and how that is known."""
    sizes = []
    for name in names[:: max(1, len(names) // _SAMPLE)][:_SAMPLE]:
        pace.turn()
        try:
            sizes.append(size_of(f"{url}/{name}", timeout))
        except Failure as failure:
            if failure.status is None:  # no network: the others would wait for it as well
                break
    sizes = [size for size in sizes if size]
    mean = sum(sizes) / len(sizes) if sizes else _MEAN_SIZE
    known = f"of {len(sizes)} of them" if sizes else "of the archive's images, since the server tells no sizes"
    return f"about {size_text(mean * len(names))}, an estimate from the mean size {known}"


def image_fault(data: bytes) -> str | None:
    """What is wrong with the content of an image file, or None: it decodes completely, and a JPEG has its end."""
    from PIL import UnidentifiedImageError

    from mmrole.base.pillow import FORMATS, Image

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            image.load()
    except UnidentifiedImageError:
        return f"not an image, but {shown(data[:20])}"
    except Exception as error:  # decoders fail in many ways (OSError, SyntaxError, struct.error, a decompression bomb)
        return f"damaged image ({error})"
    # The decoder does not miss the last bytes. Anything may follow the end, and a thumbnail with an end of its own may
    # come before the picture, so it is the end after the last scan that counts.
    if data.startswith(_JPEG) and data.rfind(_END) < data.rfind(_SCAN):
        return "damaged image (its end is missing)"
    return None


def _json_files(source: Path) -> list[Path]:
    return [source] if source.is_file() else files_below(source, "*.json")


def _names(path: Path) -> set[str]:
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                return set()
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
                return {match[1].decode() for match in _NAME.finditer(text)}
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason(error)}") from None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    open_regular(path).close()
    try:
        archive = zipfile.ZipFile(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason(error)}") from None
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise UserError(f"{path} is not a usable zip archive ({error}); fetch it again") from None
    with archive:
        yield archive


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """By file name. Where a member would be unpacked to plays no role: it is written under the name that was asked."""
    members = {}
    for member in archive.infolist():
        *folders, name = PurePosixPath(member.filename).parts or [""]
        if not folders or folders[-1] == FOLDER.name:
            members[name] = member
    return members


def _unpacked(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    if member.file_size > LARGEST:
        raise Failure(f"{member.file_size:,} bytes in the archive, which is no single image")
    try:
        return archive.read(member)
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise Failure(f"damaged in the archive ({error})") from None
