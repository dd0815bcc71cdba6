"""Download FineWeb, tokenised with GPT-2's BPE, as ready-made shards from the Hugging Face hub.

    python -m data.fineweb [--shards N] [--data DIR]

Dataset repository kjj0/fineweb10B-gpt2 (FineWeb sample-10BT): one validation shard and 103 train shards of
10^8 tokens (200 MB) each, the last one shorter. A dropped connection is resumed within a file; after an
interruption the same command fetches only the shards that are missing. HF_ENDPOINT (a mirror),
HF_HUB_OFFLINE, HF_TOKEN and proxies are honoured as huggingface_hub does.
"""

import argparse
import os
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import tqdm

from data.shards import ShardError, foreign_shard, read_shard

REPOSITORY = "kjj0/fineweb10B-gpt2"
TRAIN_SHARDS = 103
SHARD_TOKENS = 100_000_000
DOWNLOADS_AT_ONCE = 4
DEFAULT_DATA = Path(__file__).resolve().parent


class FetchError(RuntimeError):
    """A shard could not be fetched; the message says which, why and what to do."""


def shard_names(train_shards: int) -> list[str]:
    """The validation shard and the first `train_shards` train shards. Raises ValueError outside 0..103."""
    if not 0 <= train_shards <= TRAIN_SHARDS:
        raise ValueError(f"{REPOSITORY} has {TRAIN_SHARDS} train shards, asked for {train_shards}")
    return ["fineweb_val_000000.bin", *(f"fineweb_train_{i:06d}.bin" for i in range(1, train_shards + 1))]


def count_tokens(path: Path) -> int:
    """The tokens of a whole FineWeb shard. Raises ShardError for a broken one, and FileNotFoundError."""
    tokens = len(read_shard(path))
    if tokens != SHARD_TOKENS and path.stem != f"fineweb_train_{TRAIN_SHARDS:06d}":
        raise ShardError(f"{path}: expected {SHARD_TOKENS:,} tokens, found {tokens:,}. Fetch it again.")
    return tokens


def is_whole(path: Path) -> bool:
    """Whether the shard is there and unbroken; a broken one is named."""
    try:
        return count_tokens(path) > 0
    except FileNotFoundError:
        return False
    except ShardError as error:
        tqdm.write(f"broken shard, to be fetched again: {error}")
        return False


def reason_for(error: Exception) -> str:
    """A failed request in one line: the library's first line, or its cause where that says more."""
    return str(error.__cause__ or error).strip().split("\n")[0]


def check_hub(name: str) -> None:
    """Ask the hub for one file before the downloads start, without their long retries. Raises FetchError."""
    try:
        get_hf_file_metadata(hf_hub_url(REPOSITORY, name, repo_type="dataset"))
    except HfHubHTTPError as error:
        message = f"{constants.ENDPOINT} does not give {REPOSITORY}/{name}: {reason_for(error)}"
        raise FetchError(message) from error
    except Exception as error:  # transport errors: the library's versions share no base class for them
        raise FetchError(
            f"cannot reach {constants.ENDPOINT} for {name}: {reason_for(error)}. Check the network, the "
            "proxy, HF_ENDPOINT and HF_HUB_OFFLINE and run this again (whole shards are kept), or make "
            "shards of your own text with: python -m data.tokenize_text"
        ) from error


def fetch_shard(path: Path) -> int:
    """Download the shard, replacing what is there; return its number of tokens.

    A broken download is fetched once more, then removed. Raises FetchError.
    """
    for _ in range(2):
        broken = path.exists()  # without force_download the library may take it for what it fetched earlier
        try:
            hf_hub_download(
                REPOSITORY, path.name, repo_type="dataset", local_dir=path.parent, force_download=broken
            )
        except Exception as error:  # as above
            raise FetchError(
                f"{path.name}: {reason_for(error)}. Run the same command again: whole shards are kept."
            ) from error
        if is_whole(path):
            return count_tokens(path)
    path.unlink()
    raise FetchError(f"{path.name}: broken in two downloads from {constants.ENDPOINT}: try another mirror")


def fetch_fineweb(folder: str | Path, train_shards: int) -> None:
    """Make sure that the folder holds the validation shard and the first `train_shards` train shards, whole.

    Whole shards are not touched, and nothing is put beside shards of another corpus. Raises FetchError,
    ValueError for a wrong number, OSError for the folder.
    """
    folder = Path(folder)
    names = shard_names(train_shards)
    if foreign := foreign_shard(folder, "fineweb", TRAIN_SHARDS, SHARD_TOKENS):
        raise FetchError(f"{foreign} is no shard of FineWeb: nothing was fetched. Name another --data")
    folder.mkdir(parents=True, exist_ok=True)
    missing = [name for name in names if not is_whole(folder / name)]
    if not missing:
        return
    check_hub(missing[0])
    with ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as pool:
        downloads = {pool.submit(fetch_shard, folder / name): name for name in missing}
        try:
            for done, download in enumerate(as_completed(downloads), 1):
                tqdm.write(f"{downloads[download]}: {download.result():,} tokens ({done}/{len(missing)})")
        except FetchError:
            pool.shutdown(cancel_futures=True)  # lets the running ones finish
            raise
        except KeyboardInterrupt:
            print("\ninterrupted: the same command fetches what is missing", file=sys.stderr, flush=True)
            os._exit(130)  # a pool's threads cannot be stopped otherwise


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m data.fineweb", description="Download FineWeb as shards.")
    shards_help = "train shards to have (default 20: enough for 3,800 steps)"
    parser.add_argument("--shards", type=int, default=20, metavar="N", help=shards_help)
    data_help = "the folder that holds fineweb10B/ (default: data/)"
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, metavar="DIR", help=data_help)
    options = parser.parse_args(arguments)
    folder = options.data / "fineweb10B"
    try:
        fetch_fineweb(folder, options.shards)
    except (FetchError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{folder}: 1 validation and {options.shards} train shards, whole")
    return 0


if __name__ == "__main__":
    sys.exit(main())
