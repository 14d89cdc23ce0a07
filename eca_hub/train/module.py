"""The LightningModule: a network, its loss, its metrics and its optimizer.

Batches arrive as uint8 pixels and are normalized on the training device, by the code that also serves.

Shapes: N images, H height, W width, K classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from eca_hub.classifier import Classifier, check_finite_scores
from eca_hub.errors import InvalidConfig
from eca_hub.hub.pull import is_local
from eca_hub.images.transform import EvalTransform
from eca_hub.models.build import build_model, resolve_config, split_name
from eca_hub.models.config import ImageConfig, ModelConfig, ProblemType, Stem
from eca_hub.models.gemm_conv import use_gemm_gradients
from eca_hub.models.regularization import set_drop_rates, use_grad_checkpointing
from eca_hub.models.weight_init import on_meta_device
from eca_hub.train.data.dataset import Batch
from eca_hub.train.data.rng import derive_seed, seed_rng
from eca_hub.train.distributed.fsdp import shard_model
from eca_hub.train.ema import EMA
from eca_hub.train.losses import (
    ClassificationLoss,
    ClassWeights,
    LossName,
    MultiLabelLoss,
    balanced_weights,
    distillation_loss,
    positive_weights,
)
from eca_hub.train.metrics import SplitMetrics
from eca_hub.train.mixup import MixUpConfig, MixUpCutMix
from eca_hub.train.multilabel_metrics import new_metrics
from eca_hub.train.optim import OptimConfig
from eca_hub.train.training_module import TrainingModule
from eca_hub.train.transfer import (
    Distillation,
    Freeze,
    batch_norms,
    freeze_parameters,
    head_names,
    load_pretrained_backbone,
    train_head_only,
)


class ImageClassifier(TrainingModule):
    """Train a network to classify images.

    Args:
        architecture: Name of the backbone, see `eca-hub models`; resnet50 by default.
        attention: Name of the attention inside each block, or `none`; eca by default.
        attention_args: Options of the attention, such as `kernel_sizes: [3, 5, 5, 7]`.
        stem: `small` does not downsample before the first block, for images up to 64 px.
        from_pretrained: Package to start from, `owner/name` or a folder, with its own architecture and attention. The
            head is new if the labels differ.
        revision: Branch, tag or commit of `from_pretrained`.
        freeze: `none`; `norms`, which keep their statistics as well; or `backbone`, so that only the head is trained
            (a linear probe): the backbone computes as in evaluation, and only `drop_rate` drops anything.
        optim: Optimizer and learning rate.
        loss: `cross_entropy`; or `bce`, the binary cross entropy of each class against the others, which is the only
            one for several labels an image. None takes the usual one.
        class_weights: `balanced` weighs the training loss of each class by the inverse of its number of images, for
            data in which some classes are rare; see also data.balanced_sampling. With several labels an image, it is
            the weight of the images that have a class against those that do not.
        label_smoothing: Share of each target that is spread over all classes.
        mix: MixUp and CutMix.
        ema_decay: Decay of an exponential moving average of the weights, such as 0.9999; the average is then validated
            and published. 0 for none.
        distill_from: Package whose logits are learned as well, `owner/name` or a folder.
        distill_alpha: Share of the loss that the teacher sets.
        distill_temperature: Temperature of the softmax of teacher and student.
        drop_rate: Share of the features before the head that are dropped.
        drop_path_rate: Share of the residual branches that are dropped (stochastic depth), for networks that have it
            and whose backbone is trained.
        grad_checkpointing: Compute the activations of each block again in the backward pass instead of keeping them:
            less memory, more time; running statistics of norms are then updated twice a step.
        channels_last: Use the channels_last memory format. On a CPU a step of ResNet-18 at 128 px is then 1.1 times as
            fast, one of ResNet-20 at 32 px 1.3 times; the last bits then depend on the number of threads.
        gemm_gradients: Compute the weight gradients of 3x3 convolutions of 256 channels or more on maps of up to 7 x 7
            as one matrix product each; equal up to rounding, float32 on a CPU only. Without AVX-512 a step of ResNet-18
            at 32 px then takes half of the time.
        compile: Use torch.compile.
        labels: Class names; comes from the data.
        multi_label: Whether any number of labels applies to an image; comes from the data.
        image: Preprocessing; comes from the data.
    """

    def __init__(
        self,
        architecture: str | None = None,
        attention: str | None = None,
        attention_args: Mapping[str, Any] | None = None,
        stem: Stem | None = None,
        from_pretrained: str | None = None,
        revision: str | None = None,
        freeze: Freeze = "none",
        optim: OptimConfig = OptimConfig(),
        loss: LossName | None = None,
        class_weights: ClassWeights = "none",
        label_smoothing: float = 0.0,
        mix: MixUpConfig = MixUpConfig(),
        ema_decay: float = 0.0,
        distill_from: str | None = None,
        distill_alpha: float = 0.5,
        distill_temperature: float = 2.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        grad_checkpointing: bool = False,
        channels_last: bool = False,
        gemm_gradients: bool = False,
        compile: bool = False,
        labels: Sequence[str] = (),
        multi_label: bool = False,
        image: ImageConfig = ImageConfig(),
    ) -> None:
        super().__init__()
        for name, share in (("label_smoothing", label_smoothing), ("ema_decay", ema_decay)):
            if not 0 <= share < 1:
                raise InvalidConfig(f"model.{name} is {share}; it must be 0 or more and below 1.")
        if not 0 <= drop_rate < 1 or not 0 <= distill_alpha <= 1 or distill_temperature <= 0:
            raise InvalidConfig(
                f"model has drop_rate {drop_rate}, distill_alpha {distill_alpha} and distill_temperature "
                f"{distill_temperature}; they must be 0 to below 1, 0 to 1, and above 0."
            )
        if multi_label and loss == "cross_entropy":
            raise InvalidConfig(
                "model.loss is cross_entropy, which takes one label an image; the data have several.",
                hint="Leave out --model.loss: it is then the binary cross entropy of each class.",
            )
        if freeze == "backbone" and not from_pretrained:
            raise InvalidConfig(
                "model.freeze is backbone, and the backbone has random weights, which would stay random.",
                hint="Give --model.from_pretrained, or --model.freeze none.",
            )
        if freeze == "backbone" and drop_path_rate:
            raise InvalidConfig(
                f"model.drop_path_rate is {drop_path_rate}, and model.freeze is backbone: a frozen backbone computes "
                "as in evaluation and drops no branches.",
                hint="Leave out --model.drop_path_rate, or give --model.freeze norms or none.",
            )
        problem_type: ProblemType = "multi_label_classification" if multi_label else "single_label_classification"
        self.base_model = from_pretrained if from_pretrained and not is_local(from_pretrained) else ""
        """Id of the hub's model from which training starts; empty for a folder or random weights."""
        self._model_name = from_pretrained or "this run"
        if from_pretrained:
            self.model, self.config, self.has_new_head = load_pretrained_backbone(
                from_pretrained, revision, ModelConfig(labels=tuple(labels), image=image, problem_type=problem_type)
            )
            _check_given(self.config, from_pretrained, architecture, attention, attention_args or {}, stem)
        else:
            self.config = resolve_config(
                ModelConfig(
                    architecture or ModelConfig.architecture,
                    attention or ModelConfig.attention,
                    attention_args or {},
                    tuple(labels),
                    image,
                    stem or ModelConfig.stem,
                    problem_type=problem_type,
                )
            )
            self.model = build_model(self.config)
        set_drop_rates(self.model, self.config, drop_rate=drop_rate, drop_path_rate=drop_path_rate)
        if grad_checkpointing:
            use_grad_checkpointing(self.model, self.config)
        freeze_parameters(self.model, self.config, freeze)
        if gemm_gradients:
            self.model = use_gemm_gradients(self.model)
        if channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.optim_config = optim
        self.last_lr = optim.lr
        self.transform = EvalTransform(image)
        self.loss, self._train_loss = (
            MultiLabelLoss(label_smoothing)
            if multi_label
            else ClassificationLoss(loss or "cross_entropy", label_smoothing)
            for _ in range(2)
        )
        self._class_weights = class_weights
        num_classes = self.config.num_classes
        self.metrics = new_metrics(num_classes, is_multi_label=multi_label)
        self.score_name = self.metrics_for("val").score_name
        self.ema = EMA(self.model, ema_decay) if ema_decay else None
        self._freeze = freeze
        self._mix = MixUpCutMix(mix, num_classes)
        self._teacher = Distillation(distill_from, self.config) if distill_from else None
        self._teacher_weight = distill_alpha
        self._temperature = distill_temperature
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        # In a tuple, so that the weights are not registered a second time under the name of the compiled network.
        self._run_model = (torch.compile(self.model) if compile else self.model,)
        # Lightning trains a module in the mode in which it is given.
        self.train()

    def setup(self, stage: str) -> None:
        """Set the weights of the classes in the training loss."""
        if stage != "fit":
            return
        if self._class_weights == "balanced":
            data = self.trainer.datamodule  # type: ignore[attr-defined]
            counts = data.class_counts()
            self._train_loss.class_weights_K = (
                positive_weights(counts, data.num_images("train"))
                if self.config.is_multi_label
                else balanced_weights(counts)
            )

    def forward(self, pixels_N3HW: Tensor) -> Tensor:
        """Map uint8 pixels (N, 3, H, W) to logits (N, K)."""
        logits_NK: Tensor = self.model(self._normalized(pixels_N3HW))
        return logits_NK

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Return the loss of one batch."""
        position = (self.trainer.current_epoch, batch_index, self.global_rank)
        seed_rng(derive_seed("step", self.seed, *position), self.device)
        x_N3HW, target = self._mix(self._normalized(batch.pixels), batch.targets)
        logits_NK = self._run_model[0](x_N3HW)
        loss: Tensor = self._train_loss(logits_NK, target)
        if self._teacher is not None:
            # The teacher computes in float32, also beside a student whose weights are bfloat16 or float64.
            teacher_NK = self._teacher(x_N3HW.float()).to(logits_NK.dtype)
            distance = distillation_loss(
                logits_NK, teacher_NK, self._temperature, is_multi_label=self.config.is_multi_label
            )
            loss = (1 - self._teacher_weight) * loss + self._teacher_weight * distance
        self.metrics_for("fit").update(logits_NK.detach(), batch.targets, loss)
        if self.trainer.loggers:
            # Lightning passes every `log_every_n_steps`-th value on to the loggers.
            self.log("train_loss_step", loss.detach(), on_step=True, on_epoch=False, batch_size=len(batch.targets))
        return loss

    def logged_names(self) -> set[str]:
        """Return the names of the metrics that `fit` logs, with the loss of every step, which loggers get."""
        return super().logged_names() | {"train_loss_step"}

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Measure one batch of the validation split."""
        self._measure(batch, "val")

    def test_step(self, batch: Batch, batch_index: int) -> None:
        """Measure one batch of the test split."""
        self._measure(batch, "test")

    def predict_step(self, batch: Batch, batch_index: int) -> tuple[Tensor, Tensor]:
        """Return the indices of the images (N,) and the probabilities of the classes (N, K)."""
        logits_NK = self._logits(batch)
        check_finite_scores(logits_NK, self._model_name)
        return batch.indices.cpu(), Classifier.to_scores(logits_NK, self.config.activation).cpu()

    def configure_model(self) -> None:
        """Shard the weights, if the strategy has a mesh of processes."""
        if self.device_mesh is not None:
            shard_model(self.model, self.device_mesh["data_parallel"])
            if self.ema is not None:
                self.ema.reset(self.model)

    def train(self, mode: bool = True) -> "ImageClassifier":
        """Switch between training and evaluation mode; what is frozen stays in evaluation mode."""
        super().train(mode)
        if mode and self._freeze == "norms":
            for norm in batch_norms(self.model):
                norm.eval()
        if mode and self._freeze == "backbone":
            train_head_only(self.model)
        return self

    def check_data(self, data: Any) -> None:
        """Check that classes can be weighed, and are not weighed twice.

        Raises:
            InvalidConfig: they cannot, or rare classes are drawn more often as well.
        """
        if self._class_weights != "balanced":
            return
        if data.balanced_sampling:
            raise InvalidConfig(
                "data.balanced_sampling and model.class_weights balanced each make up for rare classes, and together "
                "do so twice; use one of both."
            )
        data.class_counts()

    def check_batch(self, num_images: int) -> None:
        """Check that the norms can be trained with a batch of so many images.

        Raises:
            InvalidConfig: a norm would see a single value per channel: one image, and a feature map of 1 x 1.
        """
        if num_images > 1 or self._freeze != "none":
            return
        image = self.config.image
        with on_meta_device():
            network = build_model(self.config).train()
            try:
                network(torch.zeros(1, image.in_chans, image.height_px, image.width_px))
            except ValueError as error:
                if "more than 1 value per channel" not in str(error):
                    raise
                raise InvalidConfig(
                    f"A batch of one image of {image.height_px} x {image.width_px} px has a feature map of 1 x 1 in "
                    f"{self.config.architecture}, which its norms cannot be trained with.",
                    hint="Give --data.batch_size 2 or more, larger images, --model.stem small or --model.freeze norms.",
                ) from None

    def head_weights(self) -> set[str]:
        """Return the names of the weights that depend on the labels."""
        return head_names(self.config)

    def metrics_for(self, split: str) -> SplitMetrics:
        """Return the metrics of `fit`, `val` or `test`."""
        metrics = self.metrics[split]
        assert isinstance(metrics, SplitMetrics)
        return metrics

    def _measure(self, batch: Batch, split: str) -> None:
        logits_NK = self._logits(batch)
        if not len(batch.targets):
            # No image of the batch could be decoded.
            return
        if self.trainer.state.fn != "fit":
            check_finite_scores(logits_NK, self._model_name)
        self.metrics_for(split).update(logits_NK, batch.targets, self.loss(logits_NK, batch.targets))

    def _logits(self, batch: Batch) -> Tensor:
        logits_NK: Tensor = self._run_model[0](self._normalized(batch.pixels))
        return logits_NK

    def forward_blank(self) -> None:
        """Make one forward of a blank image and discard the result."""
        image = self.config.image
        blank = torch.zeros(1, image.in_chans, image.height_px, image.width_px, dtype=torch.uint8, device=self.device)
        self._run_model[0](self._normalized(blank))

    def _normalized(self, pixels_N3HW: Tensor) -> Tensor:
        x_N3HW = self.transform.normalize(pixels_N3HW).contiguous(memory_format=self._memory_format)
        # float32 under autocast; `64-true` and `bf16-true` change the weights' type.
        return x_N3HW.to(next(self.model.parameters()).dtype)


def _check_given(
    config: ModelConfig,
    package: str,
    architecture: str | None,
    attention: str | None,
    attention_args: Mapping[str, Any],
    stem: str | None,
) -> None:
    """Refuse options that contradict the package from which training starts.

    Raises:
        InvalidConfig: architecture, attention or stem are given and differ from those of the package.
    """
    backbone, named_attention = split_name(architecture) if architecture else (None, "none")
    given = {
        "architecture": (backbone, config.architecture),
        "attention": (attention or (named_attention if named_attention != "none" else None), config.attention),
        "stem": (stem, config.stem),
        "attention_args": (
            {name: list(each) if isinstance(each, tuple) else each for name, each in attention_args.items()} or None,
            {name: list(each) if isinstance(each, tuple) else each for name, each in config.attention_args.items()},
        ),
    }
    for name, (value, own) in given.items():
        if value is not None and value != own:
            raise InvalidConfig(
                f"--model.{name} is {value}, but the package {package} of --model.from_pretrained has {own}.",
                hint=f"Leave out --model.{name}, or leave out --model.from_pretrained to train from random weights.",
            )
