"""Facts of a rented machine that its provider puts into the environment."""

import os
from collections.abc import Mapping

# Named one by one, so that RUNPOD_API_KEY and whatever secret may be added beside it are never among them.
_RUNPOD = {
    "RUNPOD_POD_ID": "runpod_pod",
    "RUNPOD_DC_ID": "runpod_datacenter",
    "RUNPOD_GPU_NAME": "runpod_gpu",
    "RUNPOD_GPU_COUNT": "runpod_gpus",
    "RUNPOD_CPU_COUNT": "runpod_cpus",
    "RUNPOD_MEM_GB": "runpod_memory_gb",
    "RUNPOD_VOLUME_ID": "runpod_volume",
}


def pod_facts(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What RunPod says of the machine; nothing elsewhere, and never a secret."""
    return {name: environment[variable] for variable, name in _RUNPOD.items() if environment.get(variable)}
