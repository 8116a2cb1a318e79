"""Keys of the earlier system that have no counterpart of the same name and meaning: what to write instead."""

from collections.abc import Mapping

ADVICE: Mapping[str, str] = {
    "model.rope_mode": "positions are always rotary, which on_the_fly and preapply mean too; a model without positions "
    "cannot be had: remove it",
    "tokenizer.vocab": 'a tokenizer is one file here: write instead tokenizer_json = "tokenizer.json", the file that '
    "was saved beside vocab.json and merges.txt",
    "tokenizer.merges": 'a tokenizer is one file here: write instead tokenizer_json = "tokenizer.json", the file that '
    "was saved beside vocab.json and merges.txt",
    "tokenizer.special_tokens": "a tokenizer.json holds its special tokens: remove it",
    "data.shuffle_buffer_size": "there is no buffer, every epoch is shuffled as a whole: remove it",
    "data.num_workers": "write instead data.prefetch, the batches made ahead",
    "scheduler.max_lr": "the peak is optimizer.learning_rate, and polynomial's exponent scheduler.power: write one of "
    "these instead",
    "runtime.checkpoint.directory": "checkpoints lie in checkpoints/ of the run folder: write instead runtime.run_dir, "
    "or give --run-dir",
    "runtime.checkpoint.every_n_epochs": "counted in steps here: write instead every_n_steps",
    "runtime.evaluation.every_n_epochs": "counted in steps here: write instead every_n_steps",
    "runtime.evaluation.best": "the best checkpoint is kept among the others, with BEST pointing at it: write instead "
    "runtime.checkpoint.save_best = true",
    "runtime.logging.enable_stdout": "write nothing for true; for false give --quiet",
    "runtime.logging.tensorboard_flush_every_n": "figures are flushed by time: remove it",
}
