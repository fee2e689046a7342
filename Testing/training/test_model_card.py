"""The model card: what was trained on, the simulated protocols, measured results."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from MissingModalitySynthLib.errors import InputError
from training.configuration import DEFAULTS
from training.model_card import citations, data_source, protocol_table, trained_subjects, write_card
from training.package_parts import recipe_history
from training.simulation.protocols import wide_protocol

SIMULATED = {"data": DEFAULTS["data"], "run": Path("nowhere")}


def scanned(run, names):
    """The recipe of a run on half scans, with its splits on disk."""
    run.mkdir(parents=True, exist_ok=True)
    (run / "splits.json").write_text(json.dumps({"splits": {"train": dict.fromkeys(names, "x"), "test": {"z": "z"}}}))
    return {"data": DEFAULTS["data"] | {"real": "scans", "real_share": 0.5}, "run": run}


def evaluation(path, **more):
    common = {"target": "FLAIR", "ssim": 0.8, "method": "regression"}
    lesion = {"mae_mask": 0.04, "mae_lesion": 0.1, "lesion_contrast": 0.02, "lesion_contrast_acquired": 0.3}
    lesion |= {"lesions_right": 2, "lesions_clear": 3}
    values = (("open-ms-07", 21.0), ("open-ms-26", 23.0), ("tcga-du-7294", 22.0))
    records = [
        common | {"subject": name, "sources": sources, "psnr": psnr + extra} | lesion
        for name, psnr in values
        for sources, extra in (("T1", 0.0), ("T2", -1.0), ("T1 + T2", 0.25))
    ]
    drops = [{"corruption": "noise", "sources": "T1", "target": "FLAIR", "subject": "open-ms-07", "drop": 1.25}]
    about = {"data": "subjects of 'subjects'", "subjects": {name: ["T1", "FLAIR"] for name, _ in values}, "own": {}}
    content = {"about": about | more, "records": records, "robustness": drops}
    path.write_text(json.dumps(content))
    return path


def test_the_card_holds_the_tables_of_every_evaluation_and_whom_it_was_measured_on(tmp_path):
    first = evaluation(tmp_path / "a.json", own={"open-ms-07": "fold"})
    second = evaluation(tmp_path / "b.json", data="simulated heads")
    run = scanned(tmp_path / "run", ["open-ms-07", "open-ms-26"])
    card = write_card("T", recipes=[SIMULATED, run], stages="Three hours.", evaluations=[first, second])
    for heading in ("Results on subjects of 'subjects'", "Results on simulated heads", "Simulated protocols", "Limits"):
        assert f"## {heading}\n" in card
    assert "| T1 → FLAIR | 3 | – | – | 22.00 / 0.800 |" in card
    assert "| T1 + T2 → FLAIR | regression | 22.25 | 22.00 / 21.00 | +0.25 | +0.25 (open-ms-07) |" in card
    assert "| T1 → FLAIR | regression | 10.0 | 4.0 | 2.50 | +0.020 | +0.300 | 3 of 3 | 6 of 9 |" in card
    assert "- tcga-du-7294, T1 → FLAIR, regression: error 2.5 times the head's" in card
    assert "| noise | 1 | 1.25 | 1.25 | 1.25 |" in card
    assert "Each of open-ms-07 was predicted by weights that were trained without it" in card
    assert "trained on open-ms-26, so that those numbers say nothing" in card
    assert "Not a medical device, not for diagnosis" in card


def test_what_was_trained_apart_has_data_of_its_own(tmp_path):
    """The zero-shot method and the segmenter saw no scan, although the paired method did."""
    run = scanned(tmp_path / "run", ["open-ms-26"])
    parts = {"midiffusion": [SIMULATED], "segmenter": [scanned(tmp_path / "other", ["c"])]}
    card = write_card("T", recipes=[run], parts=parts, stages="", evaluations=[])
    main, zero_shot, segmenter = (
        next(line for line in card.splitlines() if line.startswith(start))
        for start in ("Scans,", "Zero-shot synthesis", "The segmenter saw")
    )
    assert "1 subject: open-ms-26." in main
    assert zero_shot.endswith("Simulated contrast as above. No patient's image was among them.")
    assert "1 subject: c." in segmenter
    limits = card[card.index("## Limits") :]
    assert "`midiffusion`" in limits and "volumetry" in limits
    alone = write_card("T", recipes=[run], stages="", evaluations=[])
    assert "midiffusion" not in alone and "segmenter" not in alone


def test_who_was_trained_on_is_named_and_cited_as_the_licence_asks(tmp_path):
    recipes = [SIMULATED, scanned(tmp_path, ["open-ms-26", "b"])]
    trained = trained_subjects(recipes)
    assert trained == ["b", "open-ms-26"]
    said = data_source(recipes)
    assert "Then: Scans, 50 % of the pairs, of 2 subjects: b, open-ms-26." in said
    assert "no patient's image" not in said
    assert "Lesjak" in citations(trained)
    assert "10.1007/s12021-017-9348-7" in citations(trained)
    assert citations(["b"]) == ""


def checkpoint(folder, **configuration):
    folder.mkdir(parents=True)
    state = {"step": 1, "configuration": {"data": DEFAULTS["data"]} | configuration}
    save_file({"average.x": torch.zeros(1)}, folder / "checkpoint.safetensors", metadata={"state": json.dumps(state)})
    return state["configuration"]


def test_weights_that_began_with_others_know_the_data_of_these_as_well(tmp_path, tiny_package):
    checkpoint(tmp_path / "first" / "regression")
    scans = scanned(tmp_path / "second", ["open-ms-07"])
    began = {"initial": str(tmp_path / "first"), "data": scans["data"]}
    recipe = checkpoint(tmp_path / "second" / "regression", **began)
    found = recipe_history(tmp_path / "second" / "regression", recipe)
    assert [each["run"].name for each in found] == ["first", "second"]
    assert trained_subjects(found) == ["open-ms-07"]
    assert "MNI152" in data_source(found)

    package = recipe_history(tmp_path / "second" / "regression", recipe | {"initial": str(tiny_package)})
    assert data_source(package).startswith("None. Then: Scans")  # what that package says of its data


def test_weights_of_simulated_contrast_alone_saw_no_patient():
    assert trained_subjects([SIMULATED]) == []
    assert data_source([SIMULATED]).endswith("The networks saw no patient's image.")


def test_runs_on_the_same_heads_are_said_once_and_weights_of_a_package_keep_their_subjects(tmp_path):
    run = scanned(tmp_path / "run", ["a"])
    came = {"data": DEFAULTS["data"], "run": Path("p"), "said": "Scans of a clinic.", "subjects": ["open-ms-26"]}
    said = data_source([came, SIMULATED, SIMULATED, run])
    assert said.startswith("Scans of a clinic. Then: Simulated contrast: the MNI152") and said.count("MNI152") == 1
    assert said.endswith("Then: Scans, 50 % of the pairs, of 1 subject: a. Simulated contrast as before.")
    assert trained_subjects([came, run]) == ["a", "open-ms-26"]
    painted = run | {"data": run["data"] | {"real_pathology": 1.3}}
    assert "subject: a, with pathology of the simulator painted into skull-stripped ones." in data_source([painted])


def test_the_card_says_how_much_of_a_t1ce_is_its_t1():
    said = {"recipes": [SIMULATED], "stages": "", "evaluations": []}
    assert "Of a T1ce that is made of a T1, 40% is that T1 itself." in write_card("T", **said, t1_in_t1ce=0.4)
    assert "that T1 itself" not in write_card("T", **said)


def test_the_card_says_that_brains_are_apart():
    said = {"recipes": [SIMULATED], "stages": "", "evaluations": []}
    assert "skull and face are worth little" in write_card("T", **said, brain_apart=True)
    assert "skull" not in write_card("T", **said)


def test_a_run_on_scans_without_its_splits_is_one_sentence(tmp_path):
    recipe = scanned(tmp_path, ["a"])
    (tmp_path / "splits.json").unlink()
    with pytest.raises(InputError, match="on whom a run was trained"):
        trained_subjects([recipe])


def test_the_table_of_protocols_has_the_ranges_that_are_drawn():
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in protocol_table().splitlines()]
    header = rows[0]
    by = {(row[0], row[1], row[2]): dict(zip(header, row, strict=True)) for row in rows[2:]}
    generator = torch.Generator().manual_seed(7)
    drawn = [wide_protocol("T2", generator) for _ in range(500)]
    for column, key in (("TE", "te"), ("TR", "tr"), ("field (T)", "field"), ("fat signal", "fat")):
        low, high = map(float, by["T2", "source", "spin echo"][column].split(" to "))
        values = [protocol[key] for protocol in drawn]
        assert (low, high) == pytest.approx((min(values), max(values)), rel=0.05, abs=0.02)
    assert by["T1", "source", "mprage"]["contrast agent"] == "–"
    assert by["T1ce", "source", "mprage"]["contrast agent"] != "–"
    shares = [float(row["share"].split()[0]) for key, row in by.items() if key[:2] == ("T1", "source")]
    assert sum(shares) == pytest.approx(100, abs=1)
