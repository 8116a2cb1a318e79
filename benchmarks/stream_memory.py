"""The memory of training on a stream, which should not depend on how much of the stream has gone by.

    python benchmarks/stream_memory.py --megabytes 3 30

A data set of each size is served on loopback and trained on once, from its first window to its last, by a model of a
few thousand parameters in a process of its own, whose resident set is looked at every 20 ms. Its cache holds some of
the windows, so that of a large data set most are deleted on the way. Linux only; needs the extra "hub".
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from tokenise_memory import measure, write_text

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from hub import environment, serving

from sconce.tokenizer.bpe import train_tokenizer

VOCABULARY = 512
BATCH, LENGTH = 64, 256
WINDOW = 2**16  # tokens
FILE_DOCUMENTS = 4000
DOCUMENT_LINES = 15
CONFIG = f"""\
[tokenizer]
tokenizer_json = "tokenizer/tokenizer.json"
[model]
hidden_size = 16
num_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
max_position_embeddings = {LENGTH}
[data]
train_shards = ["hf://org/words"]
streaming = true
batch_size = {BATCH}
micro_batch_size = 8
sequence_length = {LENGTH}
window_tokens = {WINDOW}
cache_limit_gb = 0.005
[runtime.evaluation]
every_n_steps = 1000000
[runtime.sample]
every_n_steps = 1000000
[runtime.checkpoint]
every_n_steps = 100
[runtime.logging]
tensorboard = false
"""


def write_data_set(root: Path, megabytes: int) -> list[str]:
    """A repository of Parquet files with so much text in one split; its documents."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = root / "org" / "words"
    folder.mkdir(parents=True)
    write_text(root / "words.txt", megabytes)
    lines = (root / "words.txt").read_text().splitlines()
    documents = ["\n".join(lines[at : at + DOCUMENT_LINES]) for at in range(0, len(lines), DOCUMENT_LINES)]
    for at in range(0, len(documents), FILE_DOCUMENTS):
        table = pa.table({"text": documents[at : at + FILE_DOCUMENTS]})
        pq.write_table(table, folder / f"train-{at // FILE_DOCUMENTS:05d}.parquet", row_group_size=500)
    return documents


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[3, 30])
    options = parser.parse_args()
    print("text MB  tokens      windows  kept  peak RSS MB  seconds")
    for megabytes in options.megabytes:
        with tempfile.TemporaryDirectory(prefix="sconce-stream-memory-") as place:
            home = Path(place)
            documents = write_data_set(home / "repos", megabytes)
            tokenizer = train_tokenizer(documents[:2000], VOCABULARY, home / "tokenizer", [])
            tokens = sum(map(len, tokenizer.encode_batch(documents))) + len(documents)
            del documents
            steps = int(0.98 * tokens) // (BATCH * LENGTH)  # less what is held out: the stream is gone through once
            horizon = f"[scheduler]\ntotal_steps = {steps}\nwarmup_steps = 10\n"
            (home / "config.toml").write_text(CONFIG + horizon)
            with serving(home / "repos") as hub:
                os.environ |= environment(hub, home / "hf")
                code = "from sconce_cli.main import main; main()"
                arguments = ["train", "--config", home / "config.toml", "--run-dir", home / "run", "--quiet"]
                rss, _, seconds, _ = measure([sys.executable, "-c", code, *map(str, arguments)])
            kept = len(list((home / "run" / "data").glob("window-*")))
            windows = -(-steps * BATCH * LENGTH // WINDOW)
            print(f"{megabytes:7}  {tokens:10,}  {windows:7}  {kept:4}  {rss:11.0f}  {seconds:7.1f}", flush=True)


if __name__ == "__main__":
    main()
