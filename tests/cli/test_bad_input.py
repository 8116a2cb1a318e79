"""Bad input: one clear line on stderr, exit code 2, no traceback, and nothing that was there is lost."""

import gzip
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from commands import checkpoints, overrides, records, sconce, sconce_here, start, weights, write_corpus

CPU = ("--backend", "cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small run that is finished; tests copy it before they harm it."""
    root = tmp_path_factory.mktemp("trained")
    corpus = write_corpus(root / "corpus.txt")
    done = sconce_here(
        "orchestrate", "--input", corpus, "--run-dir", root / "run", "--vocab-size", 300, *CPU, *overrides()
    )
    assert done.returncode == 0, done.stderr
    # The overrides belong to the run from now on: its config file is what tests change.
    config = root / "run" / "training.toml"
    for pair in overrides()[1::2]:
        set_key(config, *pair.split("="))
    return root


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the finished run that a test may harm."""
    return Path(shutil.copytree(trained / "run", tmp_path / "run"))


def set_key(config, key, value):
    """Change one key of a TOML file, in its own table."""
    import tomllib

    import tomli_w

    table = tomllib.loads(config.read_text())
    *sections, name = key.split(".")
    inner = table
    for section in sections:
        inner = inner.setdefault(section, {})
    inner[name] = json.loads(value)
    config.write_text(tomli_w.dumps(table))


def resume(run, *more):
    return sconce_here("train", "--config", run / "training.toml", "--run-dir", run, "--resume", *CPU, *more)


def assert_refused(done, *says, lines=1):
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("sconce: ")
    assert len(done.stderr.strip().splitlines()) == lines, done.stderr
    for text in says:
        assert text in done.stderr, done.stderr


def orchestrate(inputs, run, *more):
    return sconce_here("orchestrate", "--input", inputs, "--run-dir", run, *CPU, *overrides(), *more)


def test_missing_file(tmp_path):
    assert_refused(orchestrate(tmp_path / "none.txt", tmp_path / "run"), "none.txt", "no such file")


def test_empty_file(tmp_path):
    (tmp_path / "empty.txt").touch()
    assert_refused(orchestrate(tmp_path / "empty.txt", tmp_path / "run"), "empty.txt", "empty")


def test_binary_file(tmp_path):
    (tmp_path / "image.txt").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" * 100)
    assert_refused(orchestrate(tmp_path / "image.txt", tmp_path / "run"), "image.txt", "binary")


def test_not_utf8(tmp_path):
    (tmp_path / "latin.txt").write_bytes("naïve café\n".encode("latin-1") * 200)
    assert_refused(orchestrate(tmp_path / "latin.txt", tmp_path / "run"), "latin.txt", "not UTF-8", "byte 2")


def test_damaged_gzip(tmp_path):
    whole = gzip.compress(b"some text that is long enough to cut\n" * 500)
    (tmp_path / "cut.txt.gz").write_bytes(whole[: len(whole) // 2])
    assert_refused(orchestrate(tmp_path / "cut.txt.gz", tmp_path / "run"), "cut.txt.gz", "gzip")


def test_a_refused_input_does_not_claim_the_folder(tmp_path):
    (tmp_path / "empty.txt").touch()
    orchestrate(tmp_path / "empty.txt", tmp_path / "run")
    corpus = write_corpus(tmp_path / "corpus.txt")
    done = orchestrate(corpus, tmp_path / "run", "--override", "scheduler.total_steps=3")
    assert done.returncode == 0, done.stderr


def test_what_train_refuses_leaves_no_folder(trained, tmp_path):
    config, gone = trained / "run/training.toml", tmp_path / "gone.json"
    words = ("train", "--config", config, "--run-dir", tmp_path / "run", *CPU)
    assert_refused(
        sconce_here(*words, "--override", f"tokenizer.tokenizer_json={gone}"), "gone.json: no such tokenizer"
    )
    assert list(tmp_path.iterdir()) == []


def test_corpus_shorter_than_one_row(tmp_path):
    (tmp_path / "short.txt").write_text("just these few words\n\nand these\n" * 3)
    done = orchestrate(tmp_path / "short.txt", tmp_path / "run", "--override", "model.max_position_embeddings=2048")
    assert_refused(done, "corpus shorter than one row", "2048")


def test_vocabulary_larger_than_the_text_supports(tmp_path):
    corpus = write_corpus(tmp_path / "corpus.txt", lines=60)
    assert_refused(orchestrate(corpus, tmp_path / "run", "--vocab-size", 9000), "support a vocabulary of", "9000")
    assert not (tmp_path / "run/tokenizer/tokenizer.json").exists()


def test_orchestrate_does_not_take_over_a_folder_it_did_not_make(run, tmp_path):
    (run / "orchestrate.json").unlink()
    before = (run / "tokenizer/tokenizer.json").read_bytes()
    assert_refused(orchestrate(write_corpus(tmp_path / "new.txt"), run), "not made by `sconce orchestrate`")
    assert (run / "tokenizer/tokenizer.json").read_bytes() == before


def test_a_config_edited_before_training_is_kept(tmp_path):
    corpus = write_corpus(tmp_path / "corpus.txt")
    too_long = ("--override", "model.max_position_embeddings=99999")
    assert_refused(orchestrate(corpus, tmp_path / "run", *too_long), "shorter")
    set_key(tmp_path / "run/training.toml", "model.max_position_embeddings", "16")
    edited = (tmp_path / "run/training.toml").read_text()
    done = sconce_here("orchestrate", "--input", corpus, "--run-dir", tmp_path / "run", *CPU)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/training.toml").read_text() == edited


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--stop-at", "5"), "already at step 30"),
        (("--override", "scheduler.total_steps=8", "--override", "scheduler.warmup_steps=0"), "already at step 30"),
        (("--override", "runtime.sample.prompt=" + "word " * 60), "runtime.sample.prompt"),
    ],
)
def test_an_end_that_lies_behind_is_refused(run, options, says):
    more = ("--override", "scheduler.total_steps=60") if options[0] == "--stop-at" else ()
    assert_refused(resume(run, *more, *options), says)


def test_a_damaged_line_of_figures_does_not_stop_a_run(run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write("garbage\n[1]\n")
    done = resume(run, "--override", "scheduler.total_steps=32")
    assert done.returncode == 0, done.stderr
    assert [r["step"] for r in records(run) if "loss" in r] == [1, 5, 10, 15, 20, 25, 30, 32]


def test_a_reader_that_goes_away_does_not_end_the_run(run):
    with start("train", "--config", run / "training.toml", "--run-dir", run / "piped", *CPU) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=120) == 0
    assert checkpoints(run / "piped")[-1] == "step-00000030"


def test_run_dir_that_is_a_file(trained, tmp_path):
    (tmp_path / "file").write_text("mine")
    done = sconce_here("train", "--config", trained / "run/training.toml", "--run-dir", tmp_path / "file", *CPU)
    assert_refused(done, "file")


def test_another_input_for_the_same_folder(run, tmp_path):
    other = write_corpus(tmp_path / "other.txt")
    assert_refused(orchestrate(other, run), "made for another job", "other.txt")


def test_faults_of_a_config_come_together(run):
    config = run / "training.toml"
    set_key(config, "model.hidden_size", "30")
    set_key(config, "model.num_attention_heads", "4")
    set_key(config, "optimizer.learing_rate", "0.1")
    set_key(config, "runtime.precision", '"fp8"')
    set_key(config, "data.batch_size", '"many"')
    done = resume(run)
    assert_refused(
        done,
        f"{config}: optimizer.learing_rate: unknown key; did you mean optimizer.learning_rate?",
        f"{config}: model.hidden_size: found 30, expected a multiple of model.num_attention_heads 4",
        f'{config}: runtime.precision: found "fp8", expected one of fp32, bf16',
        f'{config}: data.batch_size: found "many", expected an integer >= 1',
        lines=4,
    )


def test_missing_config(tmp_path):
    assert_refused(sconce("train", "--config", tmp_path / "no.toml"), "no.toml", "no such file")


def test_broken_toml_says_the_line(tmp_path):
    (tmp_path / "a.toml").write_text("[model]\nhidden_size = = 3\n")
    assert_refused(sconce_here("train", "--config", tmp_path / "a.toml"), "a.toml", "line 2")


def test_a_run_is_not_overwritten_without_resume(run):
    before = weights(run, 30)
    (run.parent / "other.toml").write_text((run / "training.toml").read_text())
    for options in (["--config", run / "training.toml", "--no-resume"], ["--config", run.parent / "other.toml"]):
        done = sconce_here("train", *options, "--run-dir", run, "--override", f"data.train_shards={run}", *CPU)
        assert_refused(done, "already holds a run at step 30", "--resume")
    assert weights(run, 30) == before


def test_unwritable_folder(trained, tmp_path):
    """A file where the run folder should be, since root may write anywhere."""
    (tmp_path / "file").write_text("mine")
    done = sconce_here("train", "--config", trained / "run/training.toml", "--run-dir", tmp_path / "file" / "run", *CPU)
    assert_refused(done, "file")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_without_write_permission(trained, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    done = sconce_here("train", "--config", trained / "run/training.toml", "--run-dir", tmp_path / "locked/run", *CPU)
    assert_refused(done, "Permission denied")


def test_disk_full(run, tmp_path):
    """On a real file system of 2 MiB, which fills up at some checkpoint; the last one before stays good."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        target = disk / "run"
        more = [
            "--override",
            "runtime.checkpoint.max_keep=50",
            "--override",
            "scheduler.total_steps=2000",
            "--override",
            "runtime.logging.tensorboard=false",
        ]
        done = sconce("train", "--config", run / "training.toml", "--run-dir", target, *CPU, *more)
        assert_refused(done, "disk full")
        kept = checkpoints(target)
        assert kept
        assert f"already holds a run at step {int(kept[-1].removeprefix('step-'))}" in (
            sconce("train", "--config", run / "training.toml", "--run-dir", target, *CPU).stderr
        )
        assert not list((target / "checkpoints").glob(".bad-*"))
    finally:
        subprocess.run(["umount", disk], check=True)


def flip_byte(path, offset=-100):
    raw = bytearray(path.read_bytes())
    raw[offset] ^= 0x10
    path.write_bytes(raw)


def test_corrupted_shard_is_built_again_while_the_text_is_there(run):
    flip_byte(run / "data/train-00000.bin")
    done = resume(run, "--override", "scheduler.total_steps=31")
    assert done.returncode == 0, done.stderr
    assert "damaged" in done.stdout


def test_corrupted_shard_without_its_text_is_refused(run):
    flip_byte(run / "data/train-00000.bin")
    set_key(run / "training.toml", "data.train_shards", '["/nowhere/corpus.txt"]')
    manifest = json.loads((run / "data/manifest.json").read_text())
    manifest["paths"] = ["/nowhere/corpus.txt"]
    (run / "data/manifest.json").write_text(json.dumps(manifest))
    assert_refused(resume(run), "train-00000.bin", "damaged")
    assert checkpoints(run)[-1] == "step-00000030"


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "manifest.json", "config.json"])
@pytest.mark.parametrize("harm", ["truncated", "flipped", "removed"])
def test_damaged_checkpoint_falls_back_to_the_one_before(run, file, harm):
    whole = weights(run, 30)
    path = run / "checkpoints/step-00000030" / file
    if harm == "truncated":
        path.write_bytes(path.read_bytes()[:-7])
    elif harm == "flipped":
        flip_byte(path, offset=path.stat().st_size // 2)
    else:
        path.unlink()
    done = resume(run)
    assert done.returncode == 0, done.stderr
    assert "step-00000020" in done.stdout
    assert list((run / "checkpoints").glob(".bad-step-00000030*"))
    assert weights(run, 30) == whole  # trained again, to the same bits
    assert [r["step"] for r in records(run) if "loss" in r] == [1, 5, 10, 15, 20, 25, 30]


def test_all_checkpoints_damaged_is_refused(run):
    for folder in (run / "checkpoints").glob("step-*"):
        flip_byte(folder / "model.safetensors")
    assert_refused(resume(run), "checkpoints", lines=1)
    assert_refused(resume(run), "checkpoints", lines=1)  # and it stays refused: no silent start from scratch


def test_tokenizer_changed_under_a_run(run):
    (run / "tokenizer/manifest.json").unlink()
    path = run / "tokenizer/tokenizer.json"
    path.write_text(path.read_text().replace('"<|pad|>"', '"<|mad|>"'))
    assert_refused(resume(run), "tokenizer.json", "not the tokenizer this run was trained with")


def test_tokenizer_damaged(run):
    flip_byte(run / "tokenizer/tokenizer.json", offset=-3)
    assert_refused(resume(run), "tokenizer.json")


def test_text_changed_under_a_run_leaves_it_its_own_tokens(trained, tmp_path):
    root = Path(shutil.copytree(trained, tmp_path / "copy"))
    set_key(root / "run/training.toml", "data.train_shards", json.dumps([str(root / "corpus.txt")]))
    (root / "corpus.txt").write_text((root / "corpus.txt").read_text() * 2)
    shard = (root / "run/data/train-00000.bin").read_bytes()
    done = resume(root / "run", "--override", "scheduler.total_steps=32")
    assert done.returncode == 0, done.stderr
    assert "the text has changed since this run began" in done.stdout
    assert (root / "run/data/train-00000.bin").read_bytes() == shard


def test_text_changed_and_the_runs_tokens_gone_is_refused(trained, tmp_path):
    root = Path(shutil.copytree(trained, tmp_path / "copy"))
    set_key(root / "run/training.toml", "data.train_shards", json.dumps([str(root / "corpus.txt")]))
    (root / "corpus.txt").write_text((root / "corpus.txt").read_text() * 2)
    shutil.rmtree(root / "run/data")
    assert_refused(resume(root / "run"), "not the tokens this run was trained on")


def test_config_changed_under_resume_names_what_may_change(run):
    set_key(run / "training.toml", "model.hidden_size", "32")
    set_key(run / "training.toml", "data.batch_size", "8")
    set_key(run / "training.toml", "optimizer.learning_rate", "0.001")
    done = resume(run)
    assert_refused(
        done,
        "model.hidden_size: 16 in the checkpoint, 32 now",
        "data.batch_size: 4 in the checkpoint, 8 now",
        "allowed: optimizer.learning_rate",
    )


def test_allowed_changes_go_on_and_are_said(run):
    done = resume(
        run,
        "--override",
        "optimizer.learning_rate=0.001",
        "--override",
        "scheduler.total_steps=35",
        "--override",
        "data.micro_batch_size=2",
    )
    assert done.returncode == 0, done.stderr
    assert "optimizer.learning_rate" in done.stdout
    assert checkpoints(run)[-1] == "step-00000035"


def test_two_processes_do_not_share_a_run(run):
    slow = start(
        "train",
        "--config",
        run / "training.toml",
        "--run-dir",
        run,
        "--resume",
        *CPU,
        "--override",
        "scheduler.total_steps=100000",
    )
    try:
        while "hardware" not in (line := slow.stdout.readline()):
            assert line, slow.stderr.read()
        assert_refused(resume(run), "another sconce process")
    finally:
        slow.kill()
        slow.communicate()


def test_missing_backend_says_what_to_install(run):
    done = sconce_here("train", "--config", run / "training.toml", "--run-dir", run, "--resume", "--backend", "cuda")
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    assert_refused(done, "--backend cuda", "install")


def test_what_a_model_is_asked_in_vain(trained):
    run = trained / "run"
    assert_refused(sconce_here("generate", run, "--prompt-file", run / "none.txt", *CPU), "none.txt: No such file")
    assert_refused(sconce_here("generate", run / "tokenizer", "-p", "a", *CPU), "not a checkpoint's manifest")
    assert_refused(sconce_here("serve", run, "--api-key", "", "--port", 0, *CPU), "--api-key: found an empty text")


def test_diverged_training_stops_and_keeps_the_last_checkpoint(run):
    done = resume(
        run,
        "--override",
        "scheduler.total_steps=400",
        "--override",
        "optimizer.learning_rate=1e30",
        "--override",
        "scheduler.warmup_steps=0",
    )
    assert_refused(done, "diverged", "optimizer.learning_rate")
    assert "step-00000030" in checkpoints(run)
