"""Records of single predictions to means over subjects, and these to Markdown and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from MissingModalitySynthLib.modality import MODALITIES

from .anchors import ANCHORS, CEILING, COPY, ORACLE
from .cases import is_glioma
from .lesions import CLEAR

Record = Mapping[str, Any]

# What is asked for most. Uptake of contrast agent is judged where there is some: in gliomas, if there are any.
MAIN_PAIRS = (
    ("T1", "T2"), ("T1", "FLAIR"), ("T2", "FLAIR"), ("T2", "T1"), ("T1", "T1ce"), ("T1 + T2", "FLAIR"),
)  # fmt: skip
LESION_RATIO = 1.5  # the aim: no larger error in lesions than so many times that of the head
BRIGHT_LESIONS = ("T2", "FLAIR")  # contrasts in which the sign of a lesion's contrast should be right
LESIONS = f"""\
Contrast: mean of each lesion minus mean of the white matter 2 to 12 mm off it, weighted by volume, in shares of the \
target's range. Lesions: of those with an acquired contrast of {100 * CLEAR:.0f} % or more, how many have its sign. \
Aim: a ratio of {LESION_RATIO:g} at most, and the right sign in {" and ".join(BRIGHT_LESIONS)}."""
ROBUSTNESS = """\
What was removed from a skull-stripped scan cannot be put back, so skull-stripping is tried on whole heads with a \
known brain only, and judged within the brain; of stripped scans, 2 mm more are removed."""

# PSNR, NMSE, SSIM: means of Kim & Park (WACV 2024), Table 2 (BraTS 2021) and, with PD, Table D (IXI); by source, then
# target. From a contrast to itself: the autoencoder alone. Table 1 gives T1 to T2 the NMSE 0.079.
PAPER: dict[str, dict[str, tuple[float, float, float]]] = {
    "T1": {
        "T1": (29.001, 0.055, 0.942), "T1ce": (26.119, 0.078, 0.912), "T2": (25.818, 0.103, 0.904),
        "FLAIR": (24.842, 0.113, 0.859), "PD": (27.729, 0.072, 0.922),
    },
    "T1ce": {
        "T1": (26.228, 0.076, 0.922), "T1ce": (28.759, 0.060, 0.937), "T2": (25.990, 0.092, 0.907),
        "FLAIR": (25.204, 0.092, 0.881),
    },
    "T2": {
        "T1": (25.422, 0.085, 0.908), "T1ce": (25.234, 0.087, 0.895), "T2": (29.230, 0.048, 0.942),
        "FLAIR": (25.074, 0.098, 0.867), "PD": (27.913, 0.067, 0.927),
    },
    "FLAIR": {
        "T1": (25.186, 0.090, 0.905), "T1ce": (25.899, 0.094, 0.906), "T2": (26.146, 0.086, 0.913),
        "FLAIR": (28.608, 0.058, 0.938),
    },
    "PD": {"T1": (27.968, 0.070, 0.931), "T2": (27.834, 0.067, 0.925), "PD": (29.396, 0.042, 0.939)},
}  # fmt: skip
NOT_COMPARABLE = (
    "The paper's numbers are of other subjects (219 of BraTS 2021; 115 of IXI where PD is the source or the target), "
    "and of models trained on 1251 and 459 subjects of the same data sets. It gives no code of its metrics, no mask, "
    "no data range and no window of SSIM; here the crop is 192 x 192 x 144 mm, the data range 1, the window Gaussian. "
    "Synthetic volumes have arbitrary units here, so one gain and one offset bring each to its target; air outside "
    "the head counts as right. So the two agree in spirit, not to the decimal."
)
_ABOUT = ("subject", "sources", "target", "method", "steps", "samples")


def summarise(records: Iterable[Record]) -> list[dict[str, Any]]:
    """Mean and SD over subjects of every number, by sources, target and method; ``n`` is how many subjects."""
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record["sources"], record["target"], record["method"]), []).append(record)
    rows = []
    for (sources, target, method), members in groups.items():
        row: dict[str, Any] = {"sources": sources, "target": target, "method": method, "n": len(members)}
        for key in dict.fromkeys(key for member in members for key in member if key not in _ABOUT):
            known = [member[key] for member in members if member.get(key) is not None]  # None: not finite, in JSON
            values = [value for value in known if math.isfinite(value)]
            if values:
                spread = stdev(values) if len(values) > 1 else None
                row[key] = {"mean": fmean(values), "sd": spread, "n": len(values)}
        rows.append(row)
    return rows


def to_csv(records: Sequence[Record]) -> str:
    """One line a record."""
    columns = [*_ABOUT, *dict.fromkeys(key for record in records for key in record if key not in _ABOUT)]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def main_table(records: Sequence[Record]) -> str:
    """Every pair, those of ``MAIN_PAIRS`` first; T1ce of gliomas alone if there are any."""
    methods = [COPY, ORACLE, *methods_of(records)]
    lines = []
    for pair in _main_first(records):
        chosen = [row for row in records if row["target"] == pair[1] and row["sources"] == pair[0]]
        if gliomas := pair[1] == "T1ce" and [row for row in chosen if is_glioma(row["subject"])]:
            chosen = gliomas
        found = {row["method"]: row for row in summarise(chosen)}
        cells = [_pair_cell(found.get(method)) for method in methods]
        name = f"{_arrow(pair)}{' (gliomas)' if gliomas else ''}"
        lines.append([name, max(row["n"] for row in found.values()), *cells])
    return table(["pair", "n", *methods], lines)


def subject_table(records: Sequence[Record], method: str) -> str:
    """One method: a row a pair of the main table, a column a subject."""
    rows = {(row["sources"], row["target"], row["subject"]): row for row in records if row["method"] == method}
    subjects = list(dict.fromkeys(name for *_, name in rows))
    lines = []
    for pair in _main_first(records):
        found = [summarise([row]) if (row := rows.get((*pair, name))) else [None] for name in subjects]
        lines.append([_arrow(pair), *(_pair_cell(each[0]) for each in found)])
    return table([method, *subjects], lines)


def several_sources(records: Sequence[Record], methods: Sequence[str]) -> str:
    """PSNR from several sources against the better one of them alone, which they should not fall behind; or ""."""
    by = {(row["sources"], row["target"], row["method"], row["subject"]): row["psnr"] for row in records}
    groups: dict[tuple[str, str, str], list[tuple[float, float, str]]] = {}
    for (sources, target, method, subject), value in by.items():
        alone = [by.get((name, target, method, subject)) for name in sources.split(" + ")]
        if method in methods and len(alone) > 1 and None not in alone:
            groups.setdefault((sources, target, method), []).append((value, *alone, subject))
    lines = []
    for (sources, target, method), rows in groups.items():
        means = [fmean(column) for column in list(zip(*rows, strict=True))[:-1]]
        gain, subject = min((row[0] - max(row[1:-1]), row[-1]) for row in rows)
        single = " / ".join(f"{value:.2f}" for value in means[1:])
        cells = [f"{means[0]:.2f}", single, f"{means[0] - max(means[1:]):+.2f}", f"{gain:+.2f} ({subject})"]
        lines.append([f"{sources} → {target}", method, *cells])
    header = ["several sources", "method", "together", "each alone", "gain over the better", "least gain"]
    return table(header, lines) if lines else ""


def pair_table(summary: Sequence[Record]) -> str:
    """PSNR / SSIM of the head crop: a row a pair, a column a method; the judge's in brackets."""
    methods = [name for name in (*ANCHORS, *methods_of(summary)) if any(row["method"] == name for row in summary)]
    found = {(row["sources"], row["target"], row["method"]): row for row in summary}
    lines = []
    for sources, target in _pairs(summary):
        # anchors that no source takes part in are listed without one
        cells = [found.get((sources, target, m)) or found.get(("", target, m)) for m in methods]
        lines.append([f"{sources} → {target}", max(cell["n"] for cell in cells if cell), *map(_pair_cell, cells)])
    return table(["pair", "n", *methods], lines)


def matrix(summary: Sequence[Record], method: str) -> str:
    """Protocol 1 as ALDM Table 2: sources down, targets across, the first stage alone on the diagonal."""
    rows = {(row["sources"], row["target"]): row for row in summary if row["method"] == method}
    diagonal = {row["target"]: row for row in summary if row["method"] == CEILING}
    targets = [name for name in MODALITIES if any(name == target for _, target in rows)]
    lines = []
    for source in dict.fromkeys(source for source, _ in rows):
        cells = [diagonal.get(target) if source == target else rows.get((source, target)) for target in targets]
        lines.append([source, *(_cell(cell, "paper_psnr", "paper_nmse", "paper_ssim") for cell in cells)])
    return table(["from", *targets], lines)


def paper_matrix(contrasts: Sequence[str]) -> str:
    """The paper's numbers for the same pairs, as far as it has them."""
    lines = []
    for source in contrasts:
        values = [PAPER.get(source, {}).get(target) for target in contrasts]
        lines.append([source, *("{:.1f} / {:.3f} / {:.3f}".format(*each) if each else "–" for each in values)])
    return table(["from (Kim & Park)", *contrasts], lines)


def masked_table(summary: Sequence[Record]) -> str:
    """Protocol 2 of every method and pair; errors in per cent of the target's range."""
    names = [key for key in _keys(summary) if key.startswith("mae_") and key not in ("mae_mask", "mae_lesion")]
    dices = [key for key in _keys(summary) if key.startswith("dice_")]
    pairs = list(dict.fromkeys((row["sources"], row["target"]) for row in summary))
    lines = [
        [
            _pair(row),
            row["method"],
            _one(row, "psnr_mask", 2),
            _one(row, "ssim_mask", 3),
            _one(row, "nmse_mask", 3),
            _one(row, "mae_mask", 1, 100),
            *(_one(row, key, 1, 100) for key in names),
            _one(row, "spectral", 1),
            *(_one(row, key, 2) for key in dices),
        ]
        for row in sorted(summary, key=lambda row: pairs.index((row["sources"], row["target"])))
    ]
    header = ["pair", "method", "PSNR", "SSIM", "NMSE", "MAE %"]
    header += [f"MAE % {key.removeprefix('mae_').replace('_', ' ')}" for key in names] + ["spectral dB"]
    return table(header + [f"Dice {key.removeprefix('dice_').replace('_', ' ')}" for key in dices], lines)


def lesion_table(records: Sequence[Record], methods: Sequence[str]) -> str:
    """Error inside the lesion, and its contrast to white matter, against the acquired one; means over subjects."""
    lines = []
    for (sources, target, method), rows in _grouped(records, lambda row: "lesion_contrast" in row).items():
        if method not in (COPY, *methods):
            continue
        ratio = fmean(_lesion_ratio(row) for row in rows)
        lesion, whole = (100 * fmean(row[key] for row in rows) for key in ("mae_lesion", "mae_mask"))
        made, acquired = (fmean(row[key] for row in rows) for key in ("lesion_contrast", "lesion_contrast_acquired"))
        right = f"{sum(_sign_is_right(row) for row in rows)} of {len(rows)}"
        single = " of ".join(str(sum(row[key] for row in rows)) for key in ("lesions_right", "lesions_clear"))
        errors = (f"{lesion:.1f}", f"{whole:.1f}", f"{ratio:.2f}")
        lines.append([f"{sources} → {target}", method, *errors, f"{made:+.3f}", f"{acquired:+.3f}", right, single])
    header = ["pair", "method", "MAE % lesion", "MAE % head", "ratio", "contrast", "acquired contrast"]
    return table([*header, "sign right: subjects", "lesions"], lines)


def lesion_failures(records: Sequence[Record], methods: Sequence[str]) -> str:
    """Every subject and pair that misses the aim, and how; or ""."""
    lines = []
    for row in records:
        if "lesion_contrast" not in row or row["method"] not in methods:
            continue
        misses = []
        if _lesion_ratio(row) > LESION_RATIO:
            misses.append(f"error {_lesion_ratio(row):.1f} times the head's")
        if row["target"] in BRIGHT_LESIONS and not _sign_is_right(row):
            misses.append(f"contrast {row['lesion_contrast']:+.3f}, acquired {row['lesion_contrast_acquired']:+.3f}")
        if misses:
            lines.append(f"- {row['subject']}, {_arrow(_pair_of(row))}, {row['method']}: {'; '.join(misses)}")
    return "\n".join(lines)


def calibration_table(calibrations: Sequence[Record]) -> str:
    """One line a pair and method, means over subjects."""
    lines = []
    for (sources, target, method), rows in _grouped(calibrations).items():
        columns = [[row[key] for row in rows if math.isfinite(row[key])] for key in ("ence", "correlation")]
        means = [f"{fmean(values):.2f}" if values else "–" for values in columns]
        lines.append([f"{sources} → {target}", method, len(rows), *means])
    return table(["pair", "method", "n", "ENCE", "correlation"], lines)


def robustness_table(drops: Sequence[Record]) -> str:
    """Loss in dB by corruption and pair, mean over subjects; and over all pairs, with the worst of all."""
    pairs = list(dict.fromkeys(_pair_of(row) for row in drops))
    lines = []
    for name in dict.fromkeys(row["corruption"] for row in drops):
        of_name = [row for row in drops if row["corruption"] == name]
        by_pair = [[row["drop"] for row in of_name if _pair_of(row) == pair] for pair in pairs]
        means = [f"{fmean(values):.2f}" if values else "–" for values in by_pair]
        values = [row["drop"] for row in of_name]
        lines.append(
            [name, len({row["subject"] for row in of_name}), *means, f"{fmean(values):.2f}", f"{max(values):.2f}"]
        )
    return table(["corruption of the source", "n", *map(_arrow, pairs), "mean", "largest"], lines)


def cost_table(records: Sequence[Record], methods: Sequence[str]) -> str:
    """Steps and seconds a volume of each method."""
    lines = []
    for method in methods:
        rows = [row for row in records if row["method"] == method]
        if rows:
            seconds = fmean(row["seconds"] for row in rows)
            lines.append([method, rows[0]["steps"], rows[0]["samples"], f"{seconds:.2f}"])
    return table(["method", "steps", "samples", "seconds a volume"], lines)


def methods_of(summary: Iterable[Record]) -> list[str]:
    """The methods that are no anchors, in the order of their first row."""
    return [name for name in dict.fromkeys(row["method"] for row in summary) if name not in ANCHORS]


def table(header: Sequence[Any], lines: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def _grouped(
    records: Iterable[Record], wanted: Callable[[Record], bool] = lambda _: True
) -> dict[tuple[str, str, str], list[Record]]:
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for row in records:
        if row["sources"] and wanted(row):
            groups.setdefault((row["sources"], row["target"], row["method"]), []).append(row)
    return groups


def _main_first(records: Sequence[Record]) -> list[tuple[str, str]]:
    there = _pairs(records)
    return [pair for pair in MAIN_PAIRS if pair in there] + [pair for pair in there if pair not in MAIN_PAIRS]


def _pair_of(row: Record) -> tuple[str, str]:
    return row["sources"], row["target"]


def _arrow(pair: tuple[str, str]) -> str:
    return " → ".join(pair)


def _lesion_ratio(row: Record) -> float:
    return row["mae_lesion"] / row["mae_mask"]


def _sign_is_right(row: Record) -> bool:
    return row["lesion_contrast"] * row["lesion_contrast_acquired"] > 0


def _pairs(summary: Iterable[Record]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((row["sources"], row["target"]) for row in summary if row["sources"]))


def _pair(row: Record) -> str:
    return f"{row['sources']} → {row['target']}" if row["sources"] else f"{row['target']}"


def _keys(summary: Iterable[Record]) -> list[str]:
    return list(dict.fromkeys(key for row in summary for key in row))


def _one(row: Record, key: str, digits: int, factor: float = 1.0) -> str:
    return f"{factor * row[key]['mean']:.{digits}f}" if key in row else "–"


def _pair_cell(row: Record | None) -> str:
    if row is None:
        return "–"
    judged = f" [{_one(row, 'judge_psnr', 2)} / {_one(row, 'judge_ssim', 3)}]" if "judge_psnr" in row else ""
    return f"{_one(row, 'psnr', 2)} / {_one(row, 'ssim', 3)}{judged}"


def _cell(row: Record | None, psnr: str, *others: str) -> str:
    if row is None or psnr not in row:
        return "–"
    spread = f" ± {row[psnr]['sd']:.1f}" if row[psnr]["sd"] is not None else ""
    return " / ".join([f"{row[psnr]['mean']:.1f}{spread}", *(_one(row, key, 3) for key in others)])
