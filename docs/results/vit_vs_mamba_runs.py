"""What vit_vs_mamba.py trains: every run by its name, each a line of ``launcher.train``. One budget for all that are compared."""

from __future__ import annotations

from dataclasses import dataclass

SEEDS = (0, 1, 2)
KHOA_EPOCHS, SYNTHETIC_EPOCHS = 40, 100


def epochs(number: int) -> tuple[str, ...]:
    """Settings: so many, with a checkpoint after the last."""
    return f"train.epochs={number}", f"train.checkpoint_epochs={number}"


# Of 1 GPU: how many of the smallest run beside it
WEIGHTS = {"VIT-S": 1.0, "MAMBA-S": 1.0, "MAMBA-V2": 1.5, "VMAMBA-T": 2.0, "VIM-S": 3.5}
FIVE, THREE = ("VIT-S", "MAMBA-S", "MAMBA-V2", "VMAMBA-T", "VIM-S"), ("VIT-S", "MAMBA-S", "MAMBA-V2")
RATES, MORE_RATES = ("1e-4", "1e-2"), ("1e-3", "3e-3")  # beside the recipe's 3e-4; the latter with one seed
MILD = ("data.augment.crop_scale=[0.8,1.0]", "data.augment.colour_jitter=0.1")
NONE = ("data.augment.crop_scale=[1.0,1.0]", "data.augment.colour_jitter=0", "data.augment.flip=0")
# Numbers of blocks whose parameters are about equal: 10 and 21 million
SMALL = {"VIT-S small": ("VIT-S", "model.depth=5"), "MAMBA-S small": ("MAMBA-S", "model.depth=6")}
LARGE = {"MAMBA-V2 large": ("MAMBA-V2", "model.depth=18")}
# A compiled step of MAMBA-V2 takes as long as two of VIT-S, or of the small one (scaling.md, training_step.md)
TWICE = "equal compute"
REMEDIES = {
    "A one": ("model.start.A=one",),
    "A normal": ("model.start.A=normal",),
    "delta x 100": ("model.start.delta=[0.1,10.0]",),
    "delta / 100": ("model.start.delta=[1e-5,1e-3]",),
    "tokens zero": ("model.start.token_std=0",),
    "no warm-up": ("optim.warmup_epochs=0",),
    "warm-up 10": ("optim.warmup_epochs=10",),
    "no clipping": ("deepspeed_config=noclip.json",),
    "batch 16": ("train.batch_size=16",),
    "depth 4 6 8": ("model.depth_schedule=[[0,4],[13,6],[27,8]]",),
    "depth 4 6 8, equal compute": ("model.depth_schedule=[[0,4],[17,6],[35,8]]", *epochs(52)),
}


@dataclass(frozen=True)
class Run:
    """One training. ``data``: the set's folder; ``weight``: the share of a GPU that it takes, in runs of the smallest kind."""

    name: str
    backbone: str
    data: str
    seed: int
    settings: tuple[str, ...]
    probed: bool = False
    weight: float = 1.0

    @property
    def folder(self) -> str:
        return f"{self.name.replace(' ', '_').replace('/', 'by').replace(',', '')}-{self.seed}"

    @property
    def epochs(self) -> int:
        return next(int(each.partition("=")[2]) for each in reversed(self.settings) if each.startswith("train.epochs="))

    def words(self) -> list[str]:
        """For launcher.train, but for --data and --out."""
        recipe = "vehicle_khoa" if self.data == "khoa" else "note"
        settings = ("deepspeed_config=zero0_bf16", *self.settings, f"seed={self.seed}")
        return ["--recipe", recipe, "--backbone", self.backbone, *(word for each in settings for word in ("--set", each))]


def khoa(name: str, backbone: str, seed: int, *settings: str, probed: bool = False) -> Run:
    """On the small real set, 128x128, as its recipe has it: rate 3e-4, batch 32, 1,240 steps."""
    common = (*epochs(KHOA_EPOCHS), "evaluation.every_epochs=4")
    return Run(name, backbone, "khoa", seed, (*common, "train.monitor_steps=31", *settings), probed, WEIGHTS[backbone])


def rendered(name: str, backbone: str, seed: int, size: str, *settings: str) -> Run:
    """On rendered people and vehicles, 200 that train: rate 3e-4, batch 64, 1,200 steps; else the note's recipe."""
    common = (
        *epochs(SYNTHETIC_EPOCHS), "evaluation.every_epochs=10",
        "train.monitor_steps=100", "optim.lr=3e-4", "train.batch_size=64", f"data.image_size={size}",
    )  # fmt: skip
    tokens = 2.5 if size == "[512,256]" else 1.0
    return Run(name, backbone, "synthetic", seed, (*common, *settings), True, tokens * WEIGHTS[backbone])


def all_runs() -> list[Run]:
    """Seed by seed; of each first what takes longest."""
    runs: list[Run] = []
    for seed in SEEDS:
        runs += [rendered(f"rendered {backbone}", backbone, seed, "[256,128]") for backbone in reversed(FIVE)]
        runs += [rendered(f"rendered 512 {backbone}", backbone, seed, "[512,256]") for backbone in reversed(THREE)]
        runs += [khoa(f"real 256 {each}", each, seed, "data.image_size=[256,128]", probed=True) for each in reversed(FIVE)]
        equal = {**LARGE, **SMALL}.items()
        runs += [rendered(f"rendered {name}", backbone, seed, "[256,128]", depth) for name, (backbone, depth) in equal]
        runs += [rendered(f"rendered VIT-S {TWICE}", "VIT-S", seed, "[256,128]", *epochs(2 * SYNTHETIC_EPOCHS))]
        small = (*SMALL["VIT-S small"][1:], *epochs(2 * SYNTHETIC_EPOCHS))
        runs += [rendered(f"rendered VIT-S small {TWICE}", "VIT-S", seed, "[256,128]", *small)]
        runs += [khoa(f"real 256 VIT-S {TWICE}", "VIT-S", seed, "data.image_size=[256,128]", *epochs(2 * KHOA_EPOCHS))]
        runs += [khoa(f"real {backbone}", backbone, seed) for backbone in THREE]
        rates = RATES if seed else RATES + MORE_RATES
        runs += [khoa(f"real {each} rate {rate}", each, seed, f"optim.lr={rate}") for each in THREE for rate in rates]
        runs += [khoa(f"real MAMBA-V2 {name}", "MAMBA-V2", seed, *settings) for name, settings in REMEDIES.items()]
        runs += [khoa("real VIT-S SGD 1e-2", "VIT-S", seed, "optim.lr=1e-2", "optim.name=sgd")]
        for each in ("VIT-S", "MAMBA-V2"):
            runs += [khoa(f"real {each} mild", each, seed, *MILD), khoa(f"real {each} no augmentation", each, seed, *NONE)]
    return runs


def _turn(run: Run) -> int:
    """What compares families comes before the remedies, of which the first seed is early all the same."""
    compares = run.name.startswith(("rendered", "real 256")) or run.name in tuple(f"real {each}" for each in THREE)
    return run.seed if compares and "512" not in run.name else (0, 3, 4)[run.seed]


RUNS = sorted(all_runs(), key=_turn)
