"""accelerate, Lightning and Hugging Face's Trainer train a converted model to the very bits of a plain loop."""

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from bitlayers import BitLinear, assert_deploy_equal, convert, deploy
from bitlayers.training import QuantizationWarmup, TwoStageSchedule, parameter_groups

STEPS, ACCUMULATED, BATCH = 30, 2, 16


class Items(Dataset[dict[str, Tensor]]):
    """Random vectors; a random projection says which of 4 classes they are of."""

    def __init__(self) -> None:
        self.x = torch.randn(STEPS * ACCUMULATED * BATCH, 16)
        self.labels = (self.x @ torch.randn(16, 4)).argmax(-1)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.x[index], "labels": self.labels[index]}


class Classifier(nn.Module):
    """What all trainers take; a call with labels gives the loss, as Hugging Face's Trainer wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.RMSNorm(32), nn.Linear(32, 4))

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.layers(x)
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Run:
    """A model and what trains it, the same ones in each test."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        self.model = convert(Classifier())
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model), lr=0.02, fused=True)
        self.schedule = TwoStageSchedule(self.optimizer, STEPS, warmup_steps=3)
        self.warmup = QuantizationWarmup(self.model, STEPS // 3)


@pytest.fixture
def items() -> Items:
    return Items()


@pytest.fixture
def expected(items: Items) -> nn.Module:
    """The model that a plain loop trains."""
    run, losses = Run(), []
    for number, batch in enumerate(DataLoader(items, BATCH), 1):
        loss = run.model(**batch)["loss"]
        (loss / ACCUMULATED).backward()
        if number % ACCUMULATED == 0:
            for part in (run.optimizer, run.schedule, run.warmup):
                part.step()
            run.optimizer.zero_grad()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])  # of 300 seeds 0.66 at most
    return run.model


def check(trained: nn.Module, expected: nn.Module, items: Items) -> None:
    for name, tensor in expected.state_dict().items():
        assert torch.equal(trained.state_dict()[name], tensor), name
    assert all(layer.quantization_lambda == 1 for layer in trained.modules() if isinstance(layer, BitLinear))
    assert_deploy_equal(trained, items.x)
    accuracy = (deploy(trained)(items.x)["logits"].argmax(-1) == items.labels).float().mean()
    assert accuracy > 0.5  # of 300 seeds 0.67 at least; the largest class is 0.38 of the items at most


def test_accelerate(items: Items, expected: nn.Module) -> None:
    run = Run()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATED)
    model, optimizer, schedule, loader = accelerator.prepare(
        run.model, run.optimizer, run.schedule, DataLoader(items, BATCH)
    )
    for batch in loader:
        with accelerator.accumulate(model):
            accelerator.backward(model(**batch)["loss"])
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if accelerator.sync_gradients:
                run.warmup.step()
    check(accelerator.unwrap_model(model), expected, items)


class LightningClassifier(lightning.LightningModule):
    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run
        self.model = run.model
        self.validated: list[Tensor] = []

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        return self.model(**batch)["loss"]

    def validation_step(self, batch: dict[str, Tensor], index: int) -> None:
        assert not self.model.training
        self.validated.append(self.model(**batch)["loss"])

    def configure_optimizers(self) -> dict[str, Any]:
        return {"optimizer": self.run.optimizer, "lr_scheduler": {"scheduler": self.run.schedule, "interval": "step"}}

    def lr_scheduler_step(self, scheduler: TwoStageSchedule, metric: object) -> None:
        scheduler.step()
        self.run.warmup.step()


@pytest.mark.filterwarnings("ignore")  # of workers, loggers and the like
def test_lightning(items: Items, expected: nn.Module, tmp_path: Path) -> None:
    module = LightningClassifier(Run())
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        accumulate_grad_batches=ACCUMULATED,
        val_check_interval=BATCH,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    loader = DataLoader(items, BATCH)
    trainer.fit(module, loader, loader)
    assert len(module.validated) > 100
    check(module.model, expected, items)


class Warmup(TrainerCallback):
    def __init__(self, warmup: QuantizationWarmup) -> None:
        self.warmup = warmup

    def on_step_end(self, *args: object, **kwargs: object) -> None:
        self.warmup.step()


def test_hugging_face_trainer(items: Items, expected: nn.Module, tmp_path: Path) -> None:
    run = Run()
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        use_cpu=True,
        num_train_epochs=1,
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=ACCUMULATED,
        max_grad_norm=0,
        train_sampling_strategy="sequential",
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    trainer = Trainer(
        run.model,
        arguments,
        train_dataset=items,
        eval_dataset=items,
        optimizers=(run.optimizer, run.schedule),
        callbacks=[Warmup(run.warmup)],
    )
    trainer.train()
    logits = torch.from_numpy(trainer.predict(items).predictions)
    check(run.model, expected, items)
    assert torch.equal(logits, run.model(items.x)["logits"])
