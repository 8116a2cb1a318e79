"""Whether a backend computes, on this machine, what the reference computes: a few seconds before days of training."""
