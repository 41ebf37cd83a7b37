"""How well does the reward model foretell people, and how much noise does it bear?

    python -m benchmarks.reward_model --data FOLDER [--model FOLDER] [--experiments]

Human pairs (preferences/hh_harmless.jsonl below the data folder): eight folds by the dialogue's first question, about
1,000 pairs to fit on, the rest judged; every pair is judged once. Beside the product's reward model stands a hashed
bag-of-words Bradley–Terry, tuned by an inner cross-validation on the same folds. `--experiments` compares further
features in the same way. Simulated thumbs: tastes on the base model's answers to benchmarks/prompts.txt, some votes
turned round; judged by the true taste on answers to prompts that nobody voted on.

The bag of words takes scikit-learn, which nothing else here needs: pip install scikit-learn.
What the model makes of texts is kept in the work folder, so that a second run takes seconds.
"""

import argparse
import json
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.preference_pairs import LAYERS, HumanPair, Missing, Read, exchanges, folds, load_pairs, read
from benchmarks.report import machine, write_result
from benchmarks.tastes import ALL_TASTES, Answer
from plaudit_trainer import reward_model
from plaudit_trainer.architecture import load_base
from plaudit_trainer.config import TrainerConfig
from plaudit_trainer.models import POLICY, Backbone, Exchange
from plaudit_trainer.quality import Figure, quality, wilson
from plaudit_trainer.readers import reader_for
from plaudit_trainer.reward_fit import Votes
from plaudit_trainer.reward_model import Reader, RewardModel
from plaudit_trainer.rollouts import end_tokens, generate_unpublished

HERE = Path(__file__).parent
FOLDS, INNER = 8, 4
STRENGTHS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Inverse L2 strengths that the inner cross-validation chooses from; rows have length about 1."""
NOISES = (0.0, 0.1, 0.2, 0.3)
console = Console()

Margins = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(pairs to fit on, pairs to judge) → how much each judged pair's chosen answer is preferred; right where positive."""


# Human pairs


def cross_fitted(margins: Margins, fold: np.ndarray, name: str) -> np.ndarray:
    """Every pair's margin by what was fitted on the other folds."""
    found = np.zeros(len(fold))
    for k in track(sorted(set(fold)), name, console=console):
        found[fold == k] = margins(np.flatnonzero(fold != k), np.flatnonzero(fold == k))
    return found


def share_right(margins: np.ndarray) -> float:
    """Of the pairs in the right order; ties count half."""
    return float(np.mean((margins > 0) + 0.5 * (margins == 0)))


def accuracy(margins: np.ndarray) -> list[float]:
    """[share of pairs in the right order, low, high], by Wilson."""
    figure = wilson(share_right(margins) * len(margins), len(margins))
    return [round(x, 4) for x in (figure.value, figure.low, figure.high)]


def ahead(ours: np.ndarray, theirs: np.ndarray) -> list[float]:
    """[points by which ours is right more often, low, high]: paired bootstrap over pairs."""
    gain = ((ours > 0) + 0.5 * (ours == 0)) - ((theirs > 0) + 0.5 * (theirs == 0))
    draws = np.random.default_rng(0).choice(gain, (10_000, len(gain))).mean(1)
    return [round(100 * float(x), 1) for x in (gain.mean(), *np.quantile(draws, [0.025, 0.975]))]


def bradley_terry(difference_PF: torch.Tensor, strengths: Sequence[float]) -> torch.Tensor:
    """(F, S): for each strength the weights that minimise −Σ log σ(difference · w) + ‖w‖²/(2·strength)."""
    weight_FS = torch.zeros(difference_PF.shape[1], len(strengths), requires_grad=True)
    strength_S = torch.tensor(strengths)
    optimiser = torch.optim.LBFGS([weight_FS], max_iter=60, tolerance_grad=1e-5, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        fit_S = -torch.nn.functional.logsigmoid(difference_PF @ weight_FS).sum(0)
        total = (fit_S + weight_FS.square().sum(0) / (2 * strength_S)).sum() / len(difference_PF)
        total.backward()
        return total

    optimiser.step(loss)
    return weight_FS.detach()


def tuned(variants: dict[str, torch.Tensor], fold: np.ndarray) -> Margins:
    """Bradley–Terry on the variant (name → difference of features) and strength that an inner cross-validation likes.

    Inner folds are whole outer folds: no dialogue lies on both sides there either.
    """

    def margins(fit: np.ndarray, judge: np.ndarray) -> np.ndarray:
        scores = {}
        for name, difference in variants.items():
            found_PS = np.zeros((len(fit), len(STRENGTHS)))
            for k in range(INNER):
                out = fold[fit] % INNER == k
                found_PS[out] = difference[fit[out]] @ bradley_terry(difference[fit[~out]], STRENGTHS)
            scores |= {(name, c): share_right(found_PS[:, place]) for place, c in enumerate(STRENGTHS)}
        name, strength = max(scores, key=lambda choice: scores[choice])
        return (variants[name][judge] @ bradley_terry(variants[name][fit], [strength]))[:, 0].numpy()

    return margins


def coordinates(difference: Any) -> torch.Tensor:
    """The rows in axes of their own, (P, P): a ridge-penalised fit is the same in any rotation; this one is small."""
    gram = torch.tensor((difference @ difference.T).toarray())
    values, axes = torch.linalg.eigh(gram)
    return (axes * values.clamp(min=0).sqrt()).float()


def bag_of_words(pairs: Sequence[HumanPair]) -> dict[str, torch.Tensor]:
    """Differences of hashed counts of words, and of words and their pairs, of the answers alone; rows of length ~1."""
    try:
        from sklearn.feature_extraction.text import HashingVectorizer
    except ImportError as error:
        raise Missing("the bag of words takes scikit-learn: pip install scikit-learn") from error
    variants = {}
    for name, ngrams, binary in (("words", (1, 1), True), ("words and pairs", (1, 2), True), ("counts", (1, 2), False)):
        hashing = HashingVectorizer(
            n_features=2**14, ngram_range=ngrams, norm=None, binary=binary, token_pattern=r"(?u)\b\w+\b"
        )
        chosen, rejected = (hashing.transform([getattr(p, side) for p in pairs]) for side in ("chosen", "rejected"))
        variants[name] = unit_rows(coordinates((chosen - rejected).tocsr()))
    return variants


def unit_rows(difference_PF: torch.Tensor) -> torch.Tensor:
    """Scaled as a whole, so that rows have length about 1."""
    return difference_PF / difference_PF.square().sum(1).mean().sqrt()


def product_features(of: Read, answers: Sequence[Exchange], reader: Reader | None) -> torch.Tensor:
    """(B, F + E): as `reward_model.features_of` puts them together."""
    middle, high = LAYERS.index(0.5), LAYERS.index(0.65)
    parts = [of.mean_BLD[:, 0], of.mean_BLD[:, middle], of.last_BLD[:, high], of.mean_BLD[:, high]]
    return torch.cat(parts if reader is None else [*parts, reader.read(answers)], dim=1)


def product(
    chosen: Read, rejected: Read, config: TrainerConfig, pairs: Sequence[HumanPair], model_folder: Path
) -> Margins:
    """The trainer's reward model with its own settings."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(model_folder)
    reader = reader_for(Backbone(load_base(model_folder, config), 0), tokenizer, config)
    better, worse = exchanges(pairs, tokenizer)
    chosen_PF, rejected_PF = product_features(chosen, better, reader), product_features(rejected, worse, reader)
    none = torch.zeros(0, chosen_PF.shape[1])

    def margins(fit: np.ndarray, judge: np.ndarray) -> np.ndarray:
        votes = Votes(none, torch.zeros(0), torch.zeros(0), chosen_PF[fit], rejected_PF[fit], torch.ones(len(fit)))
        model = RewardModel.fresh(votes.all_features(), config, reader).fitted(votes, config)
        return (model.logits(chosen_PF[judge]) - model.logits(rejected_PF[judge])).numpy()

    return margins


def blocks(of: Read) -> dict[str, torch.Tensor]:
    """Features to try, by name: where they are read, and at which depth."""
    made = {"numbers": of.numbers_BN}
    for place in ("mean", "last", "asked"):
        states_BLD = getattr(of, f"{place}_BLD")
        for level, share in enumerate(LAYERS):
            if share or place == "mean":  # the embedding of one token says nothing of the answer
                made[f"{place} {share:g}"] = states_BLD[:, level]
    return made


def scaled_difference(chosen: torch.Tensor, rejected: torch.Tensor, components: int | None = None) -> torch.Tensor:
    """Differences of standardised features, rows of length ~1; of their first principal components, whitened, if told.

    Means, deviations and components are of texts alone: no preference is looked at.
    """
    every = torch.cat([chosen, rejected])
    centre, spread = every.mean(0), every.std(0).clamp(min=1e-6)
    difference = (chosen - rejected) / spread
    if components is not None and components < min(every.shape):
        _, lengths, axes = torch.linalg.svd((every - centre) / spread, full_matrices=False)
        difference = difference @ axes[:components].T / lengths[:components]
    return unit_rows(difference)


def experiments(
    chosen: Read, rejected: Read, words: dict[str, torch.Tensor], fold: np.ndarray
) -> dict[str, np.ndarray]:
    """Margins of every block alone, of mixtures, and of mixtures with a bag of words; all tuned alike."""
    ours, theirs = blocks(chosen), blocks(rejected)
    single = {name: scaled_difference(ours[name], theirs[name]) for name in ours}
    found = {}
    for name, difference in single.items():
        variants = {"all": difference}
        if difference.shape[1] > 64:
            variants |= {f"{k} components": scaled_difference(ours[name], theirs[name], k) for k in (32, 128)}
        found[name] = cross_fitted(tuned(variants, fold), fold, name)
    mixtures = {
        "means of all depths": [n for n in single if n.startswith("mean")],
        "last states": [n for n in single if n.startswith("last")],
        "asked states": [n for n in single if n.startswith("asked")],
        "words, middle, asked": ["mean 0", "mean 0.5", "asked 0.8", "numbers"],
        "everything": list(single),
    }
    for name, parts in mixtures.items():
        dense = torch.cat([single[part] for part in parts], dim=1) / len(parts) ** 0.5
        found[name] = cross_fitted(tuned({"all": dense}, fold), fold, name)
        mixed = {f"{kind} × {size:g}": torch.cat([dense, words[kind] * size], 1) for kind in words for size in (0.5, 1)}
        found[f"{name} + bag of words"] = cross_fitted(tuned(mixed, fold), fold, f"{name} + bag of words")
    return found


def human(args: argparse.Namespace) -> dict[str, Any]:
    """Figures on human pairs."""
    pairs = load_pairs(args.data)[: 96 if args.quick else None]
    fold = folds(pairs, FOLDS)
    words = bag_of_words(pairs)
    margins = {"bag of words": cross_fitted(tuned(words, fold), fold, "bag of words")}
    chosen, rejected = read(pairs, args.model, args.work / ("quick" if args.quick else "pairs"))
    ours = product(chosen, rejected, TrainerConfig(), pairs, args.model)
    margins["reward model"] = cross_fitted(ours, fold, "reward model")
    if args.experiments:
        margins |= experiments(chosen, rejected, words, fold)
    table = Table(title=f"human pairs, n = {len(pairs)}, about {len(pairs) * (FOLDS - 1) // FOLDS} fitted on")
    for column in ("by", "accuracy", "95 % interval", "points above bag of words"):
        table.add_column(column, justify="left" if column == "by" else "right")
    for name, found in margins.items():
        value, low, high = accuracy(found)
        gain, least, most = ahead(found, margins["bag of words"])
        table.add_row(name, f"{value:.3f}", f"{low:.3f} to {high:.3f}", f"{gain:+.1f} ({least:+.1f} to {most:+.1f})")
    console.print(table)
    figures: dict[str, Any] = {
        "human_accuracy": accuracy(margins["reward model"]),
        "bag_of_words_accuracy": accuracy(margins["bag of words"]),
        "points_above_bag_of_words": ahead(margins["reward model"], margins["bag of words"]),
        "pairs": len(pairs),
    }
    tried = {name: accuracy(found) for name, found in margins.items() if name not in ("reward model", "bag of words")}
    return figures | ({"experiments": tried} if tried else {})


# Simulated thumbs


@dataclass(frozen=True, slots=True)
class Pool:
    """Answers of the base model, with the features that the reward model reads."""

    questions: list[str]
    answers: list[Answer]
    features_BF: torch.Tensor
    reader: Reader | None


def pool(args: argparse.Namespace, config: TrainerConfig) -> Pool:
    """Two answers to each prompt (one to each of a few where quick), drawn once and kept in the work folder."""
    torch.set_num_threads(config.threads)
    questions = (HERE / "prompts.txt").read_text(encoding="utf-8").splitlines()
    questions = questions[:24] if args.quick else questions * 2
    file = args.work / f"answers-{len(questions)}.json"
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(args.model)
    backbone = Backbone(load_base(args.model, config), 0, config.token_budget)
    rows = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    if not rows:
        console.print(f"drawing {len(questions)} answers of the base model; they are kept in {file}")
        backbone.add_adapter(POLICY, 1)
        prompts = [_prompt_ids(tokenizer, question) for question in questions]
        drawn = generate_unpublished(backbone, prompts, max_new_tokens=64, temperature=1.0, seed=0)
        rows = [[list(e.prompt_ids), list(e.response_ids)] for e in drawn]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(rows), encoding="utf-8")
    ends = end_tokens(backbone.model)
    texts = [tokenizer.decode(response, skip_special_tokens=True) for _, response in rows]
    said = zip(texts, questions, rows, strict=True)
    answers = [Answer(text, response[-1] in ends, question) for text, question, (_, response) in said]
    encoded = backbone.encode([Exchange(tuple(p), tuple(r)) for p, r in rows])
    reader = reader_for(backbone, tokenizer, config)
    return Pool(questions, answers, reward_model.features_of(encoded, reader), reader)


def _prompt_ids(tokenizer: Any, question: str) -> tuple[int, ...]:
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
    )
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def thumbs_once(of: Pool, taste: str, noise: float, votes: int, seed: int) -> tuple[float, float]:
    """(AUROC by the true taste, calibration error by noisy votes) on prompts that nobody voted on."""
    dice, config = random.Random(f"{taste} {seed}"), TrainerConfig(seed=seed)
    asked = sorted(set(of.questions))
    dice.shuffle(asked)
    known = set(asked[: round(0.6 * len(asked))])
    places = [i for i, q in enumerate(of.questions) if q in known]
    fit = dice.sample(places, k=min(votes, len(places)))
    judge = [i for i, q in enumerate(of.questions) if q not in known]
    likes_B = torch.tensor([float(ALL_TASTES[taste](answer)) for answer in of.answers])
    noisy_B = torch.where(torch.tensor([dice.random() < noise for _ in of.answers]), 1 - likes_B, likes_B)
    none = torch.zeros(0, of.features_BF.shape[1])
    given = Votes(of.features_BF[fit], noisy_B[fit], torch.ones(len(fit)), none, none, torch.zeros(0))
    model = RewardModel.fresh(given.features_BF, config, of.reader).fitted(given, config)
    logit_B = model.logits(of.features_BF[judge])
    true, noisy = quality(logit_B, likes_B[judge]), quality(logit_B, noisy_B[judge])
    return true.auroc.value, noisy.calibration_error.value


def over_seeds(values: Sequence[float]) -> list[float]:
    """[mean, low, high]: Student's t over seeds."""
    from scipy.stats import t

    mean, n = float(np.mean(values)), len(values)
    half = float(t.ppf(0.975, n - 1) * np.std(values, ddof=1) / n**0.5) if n > 1 else 0.0
    figure = Figure(mean, max(0.0, mean - half), min(1.0, mean + half))
    return [round(x, 4) for x in (figure.value, figure.low, figure.high)]


def thumbs(args: argparse.Namespace) -> dict[str, Any]:
    """Figures on simulated thumbs."""
    of = pool(args, TrainerConfig())
    seeds, counts = (3, (24,)) if args.quick else (12, (64, 128, 256))
    found: dict[str, Any] = {"auroc_by_noise": {}, "calibration_error_by_noise": {}}
    table = Table(title=f"simulated thumbs, {len(of.answers)} answers, {seeds} seeds: AUROC by the true taste")
    for column in ("taste", "votes", *(f"{noise:.0%} turned round" for noise in NOISES)):
        table.add_column(column, justify="left" if column == "taste" else "right")
    for taste in ALL_TASTES:
        for votes in counts:
            cells = []
            for noise in NOISES:
                runs = [thumbs_once(of, taste, noise, votes, seed) for seed in range(seeds)]
                auroc, calibration = (over_seeds(column) for column in zip(*runs, strict=True))
                for name, figure in zip(found, (auroc, calibration), strict=True):
                    found[name].setdefault(f"{noise:g}", {}).setdefault(taste, {})[str(votes)] = figure
                cells.append(f"{auroc[0]:.2f} ({auroc[1]:.2f} to {auroc[2]:.2f})")
            table.add_row(taste, str(votes), *cells)
    console.print(table)
    return found


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with preferences/ (default: PLAUDIT_BENCH_DATA)")
    parser.add_argument("--model", type=Path, default=Path("data/models/smollm2-135m-instruct"), help="a model folder")
    parser.add_argument("--work", type=Path, default=Path("data/bench/reward_model"), help="kept between runs")
    parser.add_argument("--part", choices=("all", "human", "thumbs"), default="all")
    parser.add_argument("--experiments", action="store_true", help="other features, too")
    parser.add_argument("--quick", action="store_true", help="few pairs, few seeds: does it run?")
    parser.add_argument("--no-write", action="store_true", help="leave benchmarks/results/reward_model.json alone")
    return parser.parse_args()


def main() -> int:
    """Both parts, their tables, the result file."""
    args, hardware = arguments(), machine()
    console.print(f"machine: {hardware['cores']} cores, {hardware['processor']}, GPU {hardware['gpu'] or 'none'}")
    figures: dict[str, Any] = {}
    try:
        if args.part in ("all", "human"):
            figures |= human(args)
    except Missing as error:
        sys.stderr.write(f"reward_model: {error}\n")
        return 2
    if args.part in ("all", "thumbs"):
        figures |= thumbs(args)
    if args.part == "all" and not args.quick and not args.no_write:
        console.print(f"written: {write_result('reward_model', figures).relative_to(HERE.parent)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
