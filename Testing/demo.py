"""The demonstration: a T2 and a FLAIR from the real MNI152 T1 that nilearn carries, with a report to look at."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from MissingModalitySynthLib.cli import main as missing_modality_synth


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output-dir", type=Path, default=Path("demo-output"))
    folder = parser.parse_args().output_dir
    folder.mkdir(parents=True, exist_ok=True)

    from nilearn.datasets import load_mni152_template

    source = folder / "mni152_T1.nii.gz"
    load_mni152_template(resolution=1).to_filename(source)
    arguments = ["synthesize", "--source", f"T1={source}", "--target", "T2", "--target", "FLAIR"]
    status = missing_modality_synth([*arguments, "--output-dir", str(folder), "--report", "--overwrite"])
    if status == 0:
        print(f"\nLook at {folder / 'mni152_T1_synthetic_report.html'} in a browser, or at the PNG beside it.")
    return status


if __name__ == "__main__":
    sys.exit(main())
