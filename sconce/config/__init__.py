"""Run configs: the schema, loading with every fault at once, and what a config means."""

from sconce.config.docs import reference as reference
from sconce.config.load import config_from as config_from
from sconce.config.load import config_from_resolved as config_from_resolved
from sconce.config.load import config_from_tables as config_from_tables
from sconce.config.load import load_config as load_config
from sconce.config.load import load_table as load_table
from sconce.config.presets import load_preset as load_preset
from sconce.config.presets import preset_names as preset_names
from sconce.config.presets import preset_table as preset_table
from sconce.config.resolve import Difference as Difference
from sconce.config.resolve import beta2 as beta2
from sconce.config.resolve import differences as differences
from sconce.config.resolve import dump_toml as dump_toml
from sconce.config.resolve import given_micro_batch as given_micro_batch
from sconce.config.resolve import micro_batch_at as micro_batch_at
from sconce.config.resolve import micro_batch_size as micro_batch_size
from sconce.config.resolve import model_spec as model_spec
from sconce.config.resolve import momentum as momentum
from sconce.config.resolve import precision as precision
from sconce.config.resolve import recompute_every as recompute_every
from sconce.config.resolve import to_json as to_json
from sconce.config.resolve import with_micro_batch as with_micro_batch
from sconce.config.schema import RunConfig as RunConfig
from sconce.config.stages import ramp as ramp
from sconce.config.stages import sequence_length as sequence_length
from sconce.config.streaming_file import dataset_address as dataset_address
