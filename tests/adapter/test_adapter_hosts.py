"""An adapter inside other libraries' models and trainers keeps its ids, or is refused by name."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist
from adapters import make, values
from adapters import video as random_video
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from vidtok_plugin import TokenizerAdapter

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", r"ignore:Found \d+ module\(s\) in eval mode", "ignore:.*GPU.*available"
)


def video() -> Tensor:
    return random_video(5, w=16)


class Parent(nn.Module):
    def __init__(self, adapter: TokenizerAdapter) -> None:
        super().__init__()
        self.adapter = adapter
        self.head = nn.Linear(2, 2)


@pytest.fixture(scope="module")
def right() -> TokenizerAdapter:
    return make("fsq")


@pytest.fixture(scope="module")
def load(right: TokenizerAdapter, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], TokenizerAdapter]:
    folder = tmp_path_factory.mktemp("adapter")
    right.save_pretrained(folder)
    return lambda: TokenizerAdapter.from_pretrained(folder)


def same(adapter: TokenizerAdapter, right: TokenizerAdapter) -> None:
    tokens = right.encode(video())
    assert torch.equal(values(adapter.encode(video())), values(tokens))
    assert torch.equal(adapter.decode(tokens), right.decode(tokens))
    assert (adapter.hash, adapter.token_hash) == (right.hash, right.token_hash)


@pytest.fixture(scope="module")
def transformer(load: Callable[[], TokenizerAdapter]) -> type[Any]:
    transformers = pytest.importorskip("transformers")

    class Model(transformers.PreTrainedModel):  # type: ignore[misc, name-defined]
        config_class = transformers.PretrainedConfig

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.adapter = load()
            self.head = nn.Linear(4, 4)
            self.post_init()

    return Model


def test_transformers_initialize_save_and_load_around_it(
    transformer: type[Any], right: TokenizerAdapter, tmp_path: Path
) -> None:
    """`post_init` drew the frozen weights anew, and half of the ids changed without a word."""
    model = transformer(transformer.config_class())
    same(model.adapter, right)
    model.apply(model._init_weights)
    same(model.adapter, right)
    model.save_pretrained(tmp_path)
    loaded = transformer.from_pretrained(tmp_path)  # creates it on the meta device
    same(loaded.adapter, right)
    assert torch.equal(loaded.head.weight, model.head.weight)
    half = transformer.from_pretrained(tmp_path, dtype=torch.bfloat16)  # sets the default dtype
    assert half.head.weight.dtype == torch.bfloat16
    same(half.adapter, right)


def test_loading_on_the_meta_device_or_in_half_precision_gives_all_values(tmp_path: Path) -> None:
    right = make("kl")
    right.fit_latent_stats([video(), random_video(5, w=16, seed=1)])
    right.save_pretrained(tmp_path)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            adapter = TokenizerAdapter.from_pretrained(tmp_path)
    finally:
        torch.set_default_dtype(before)
    same(adapter, right)


def test_transformers_in_half_precision_are_refused(transformer: type[Any]) -> None:
    model = transformer(transformer.config_class()).half()
    with pytest.raises(ValueError, match=r"must be in float32, since ids change in torch\.float16"):
        model.adapter.encode(video())
    with pytest.raises(ValueError, match=r"frozen encoder must stay as they were, but conv_in\.conv\.weight has other"):
        model.float().adapter.encode(video())


def test_diffusers_models_and_averages_keep_it(
    load: Callable[[], TokenizerAdapter], right: TokenizerAdapter, tmp_path: Path
) -> None:
    diffusers = pytest.importorskip("diffusers")
    from diffusers.configuration_utils import register_to_config
    from diffusers.training_utils import EMAModel

    class Model(diffusers.ModelMixin, diffusers.ConfigMixin):  # type: ignore[misc, name-defined]
        @register_to_config
        def __init__(self, width: int = 4) -> None:
            super().__init__()
            self.adapter = load()
            self.head = nn.Linear(width, width)

    model = Model()
    average = EMAModel(model.parameters(), decay=0.9)
    for _ in range(3):
        average.step(model.parameters())
    average.copy_to(model.parameters())
    same(model.adapter, right)
    model.save_pretrained(tmp_path)
    same(Model.from_pretrained(tmp_path).adapter, right)


def test_accelerate_prepares_and_empties_models_around_it(
    load: Callable[[], TokenizerAdapter], right: TokenizerAdapter
) -> None:
    accelerate = pytest.importorskip("accelerate")
    with accelerate.init_empty_weights():
        adapter = load()
    same(adapter, right)
    accelerator = accelerate.Accelerator(cpu=True)
    parent = Parent(load())
    model, optimizer = accelerator.prepare(parent, torch.optim.AdamW(parent.parameters(), weight_decay=1.0))
    accelerator.backward(model.head(torch.ones(1, 2)).sum())
    optimizer.step()
    same(accelerator.unwrap_model(model).adapter, right)
    accelerate.cpu_offload(parent, execution_device="cpu")
    with pytest.raises(ValueError, match=r"conv_in\.conv\.weight has no values \(device meta\) and \d+ more"):
        parent.adapter.encode(video())


class LightningParent(pl.LightningModule):
    def __init__(self, adapter: TokenizerAdapter) -> None:
        super().__init__()
        self.adapter = adapter
        self.head = nn.Linear(1, 1)

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        tokens = self.adapter.encode(video())
        return self.head(values(tokens).float().mean()[None]).sum() + self.adapter.decode(tokens).mean()

    def validation_step(self, batch: Tensor, index: int) -> None:
        self.adapter.encode(video())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), weight_decay=1.0)

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(torch.zeros(3, 1))

    def val_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(torch.zeros(1, 1))


def trainer(folder: Path, **settings: Any) -> pl.Trainer:
    switches = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return pl.Trainer(max_steps=2, accelerator="cpu", logger=False, default_root_dir=folder, **{**switches, **settings})


def test_lightning_trains_saves_and_loads_around_it(
    load: Callable[[], TokenizerAdapter], right: TokenizerAdapter, tmp_path: Path
) -> None:
    module, run = LightningParent(load()), trainer(tmp_path)
    run.fit(module)
    same(module.adapter, right)
    run.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert not any(key.startswith("adapter.tokenizer.") for key in saved)
    loaded = LightningParent.load_from_checkpoint(tmp_path / "last.ckpt", adapter=load(), weights_only=True)
    same(loaded.adapter, right)
    assert torch.equal(loaded.head.weight, module.head.weight)


def test_lightnings_average_which_rounds_is_refused(load: Callable[[], TokenizerAdapter], tmp_path: Path) -> None:
    module = LightningParent(load())
    with pytest.raises(ValueError, match=r"frozen encoder must stay .* has other values"):
        trainer(tmp_path, callbacks=[EMAWeightAveraging()]).fit(module)
        module.adapter.encode(video())


def test_lightning_in_bfloat16_is_refused(load: Callable[[], TokenizerAdapter], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must be in float32, since ids change in torch\.bfloat16"):
        trainer(tmp_path, precision="bf16-true").fit(LightningParent(load()))


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    init = tmp_path_factory.mktemp("distributed") / "init"
    dist.init_process_group("gloo", init_method=f"file://{init}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_fully_sharded_weights_are_refused_and_ignored_ones_are_not(
    load: Callable[[], TokenizerAdapter], right: TokenizerAdapter, one_process: None
) -> None:
    mesh, policy = init_device_mesh("cpu", (1,)), MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    sharded = Parent(load())
    fully_shard(sharded, mesh=mesh, mp_policy=policy)
    with pytest.raises(ValueError, match=r"frozen encoder must stay .* but conv_in\.conv\.weight is sharded and \d+"):
        sharded.adapter.encode(video())
    parent = Parent(load())
    fully_shard(parent, mesh=mesh, mp_policy=policy, ignored_params=set(parent.adapter.parameters()))
    same(parent.adapter, right)


def test_ddp_leaves_it(load: Callable[[], TokenizerAdapter], right: TokenizerAdapter, one_process: None) -> None:
    same(DistributedDataParallel(Parent(load())).module.adapter, right)


def test_compiled_parents_encode_the_same_ids(right: TokenizerAdapter, load: Callable[[], TokenizerAdapter]) -> None:
    adapter = load()
    encode = torch.compile(lambda clip: values(adapter.encode(clip)), backend="eager")
    assert torch.equal(encode(video()), values(right.encode(video())))
    with torch.no_grad():
        next(adapter.tokenizer.encoder.parameters()).data.add_(1)
    with pytest.raises(ValueError, match="frozen encoder must stay"):
        encode(video())
