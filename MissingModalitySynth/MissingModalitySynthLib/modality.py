"""The vocabulary of MRI contrasts: canonical names, aliases, honest guesses and display defaults.

A guess is an aid for pre-filling a choice. Where the evidence is missing or contradictory, the answer is ``None``.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from .errors import InputError

MODALITIES = ("T1", "T1ce", "T2", "FLAIR", "PD")
OTHER = "other"  # a source whose contrast is unknown, or none of these; never a target


@dataclass(frozen=True)
class Display:
    """How a contrast is shown.

    Attributes:
        title: name for people, for example "T1-weighted, contrast-enhanced".
        window_percentiles: percentiles (0 to 100) of the head's intensities that become black and white.
        color_map: name of the colour map; "gray" is known to matplotlib and, ignoring case, to the viewers.
    """

    title: str
    window_percentiles: tuple[float, float] = (1.0, 99.5)
    color_map: str = "gray"


# The upper percentile follows what is bright and small in each contrast: enhancing tissue and lesions must not
# saturate, while the large and bright CSF of a T2 may.
DISPLAY: Mapping[str, Display] = {
    "T1": Display("T1-weighted"),
    "T1ce": Display("T1-weighted, contrast-enhanced", (1.0, 99.8)),
    "T2": Display("T2-weighted", (1.0, 99.0)),
    "FLAIR": Display("T2-weighted FLAIR", (1.0, 99.7)),
    "PD": Display("proton-density-weighted"),
    OTHER: Display("unlisted contrast"),
}

# Aliases are compared in lower case with everything but letters and digits left out: "T1-Gd" is "t1gd".
_ALIASES = {
    "T1": """t1 t1w t1wi t1n t1weighted t1weightedimage t1native t1nativ t1pre t1precontrast t1se t1tse t1fse t1ffe
        t1tfe t1spc t1space t13d 3dt1 3dt1w t1mprage t1mpr t1flash t1fl3d t1fl2d t1spgr t1fspgr t1bravo t1vibe t1flair
        mprage mprage3d 3dmprage memprage spgr fspgr irfspgr irspgr 3dspgr bravo tfe tfe3d 3dtfe tfl3d""",
    "T1ce": """t1ce t1c t1wce t1cew t1wc t1gd t1gad t1gado t1gadolinium t1wgd t1wgad t1post t1postgd t1postcontrast
        t1wpost t1wpostgd t1wpostcontrast t1contrast t1contrastenhanced t1enhanced t1ks t1km t1wks t1wkm t1mpragegd
        t1mpragece t1mpragec mpragegd mpragece mpragec mpragekm cet1 cet1w gdt1 gdt1w""",
    "T2": """t2 t2w t2wi t2weighted t2weightedimage t2se t2tse t2fse t2frfse t2spc t2space t2cube t2blade t2propeller
        t23d 3dt2 3dt2w""",
    "FLAIR": """flair flair3d 3dflair flairw t2flair t2wflair flairt2 flairt2w t2f t2wf t2fl t2dafl t2tirm dafl
        darkfluid tirmdarkfluid t2tirmdarkfluid t2darkfluid spcir t2spcir fluidattenuated
        fluidattenuatedinversionrecovery""",
    "PD": "pd pdw pdwi pdweighted protondensity protondensityweighted pdse pdtse pdfse pd3d 3dpd",
}
_CANONICAL = {alias: name for name, aliases in _ALIASES.items() for alias in aliases.split()}
_LONGEST_ALIAS_IN_WORDS = 4  # "fluid attenuated inversion recovery"

_NOT_A_CONTRAST = frozenset(
    """segs segmentation segmentations aparc masks lesion lesions label labels
    labelmap roi rois parcellation pve t2star t2starw t2starweighted t1map t2map pdmap map maps mapping t1rho rho stir
    swi swan dwi dti dki adc trace tracew diff diffusion bold fmri asl pcasl perfusion perf dsc dce mra mrv tof angio
    phase fieldmap fmap qsm localizer localiser scout survey warp xfm transform difference""".split()
)
_GRADIENT_ECHO = frozenset("gre ffe hemo fl2d medic".split())  # with "T2" they name a T2*-weighted scan
_CONJUNCTIONS = frozenset("and und et y &".split())
_AGENT = frozenset(
    """ce gd gad gado gadolinium gadovist dotarem magnevist multihance prohance contrast kontrast postcontrast postgd
    post km ks enhanced""".split()
)
_NO_AGENT = frozenset("pre precontrast native nativ noncontrast unenhanced nonenhanced".split())
_PLUS_AGENT = re.compile(r"\+ ?(c|k|km|ks|gd|ce)?\b|\+(?= |$)")  # "T1 + C", "T1+"
_MINUS_AGENT = re.compile(r"\bc-(?= |$)", re.IGNORECASE)  # "T1 C-"
_NEGATED_AGENT = re.compile(
    r"\b(pre|no|non|not|without|ohne|sans|wo|w o)( iv)? "
    r"(contrast enhanced|contrast|kontrast|gd|gad|gado|gadolinium|km|ks|ce)\b"
)
_POST_SOMETHING_ELSE = re.compile(r"\bpost ?(op|operative|surgery|surgical|resection|treatment|tx|rt|processed)\b")
_WITH_AND_WITHOUT = re.compile(r"\b(w|with) ?(and )?(wo|w o|without)\b")
_IMAGE_SUFFIX = re.compile(r"\.(nii\.gz|nii|nrrd|nhdr|mha|mhd|mgz|mgh|hdr|img|dcm|ima)$", re.IGNORECASE)
_PATH_START = re.compile(r"[/\\.~]|[A-Za-z]:[/\\]")
_BIDS_ENTITY_OF_NO_CONTRAST = re.compile(r"(^|(?<=_))(sub|ses|space|run|rec|dir|res|echo)-[^_]*_?")


def canonical_name(text: str) -> str:
    """The canonical name of a contrast that a person typed.

    Args:
        text: a name or alias such as "T1", "t1w", "T1-Gd", "t2f" or "proton density"; case and punctuation don't count.

    Returns:
        One of ``MODALITIES``.

    Raises:
        InputError: the name is unknown; the message lists the known ones.
    """
    name = _named(text)
    if name is None:
        raise InputError(f"'{text}' is not a known contrast: use one of {', '.join(MODALITIES)}.")
    return name


def source_name(text: str) -> str:
    """As :func:`canonical_name`, for a source, which may also be ``OTHER``: of unknown or of no listed contrast.

    Raises:
        InputError: the name is neither known nor ``OTHER``.
    """
    name = OTHER if text.strip().lower() == OTHER else _named(text)
    if name is None:
        raise InputError(
            f"'{text}' is not a known contrast: use one of {', '.join(MODALITIES)}, or '{OTHER}' for any that is none "
            "of these."
        )
    return name


def shown_name(name: str) -> str:
    """How a contrast is called in names and sentences: as it is, and ``OTHER`` in words."""
    return DISPLAY[OTHER].title if name == OTHER else name


def _named(text: str) -> str | None:
    key = re.sub(r"[^a-z0-9]", "", text.lower().replace("*", "star"))
    if text.rstrip().endswith("+"):
        key += "ce"
    return _CANONICAL.get(key)


def guess_modality(name_or_path: str | os.PathLike | None = None, dicom: Mapping | None = None) -> str | None:
    """Guess the contrast of a scan from its name, its DICOM attributes, or both.

    Args:
        name_or_path: a file (only its last part counts), or the name of a node or series.
        dicom: DICOM attributes by keyword, times in ms: any of Modality, SeriesDescription, ProtocolName,
            ContrastBolusAgent, SequenceName, ScanningSequence, EchoTime, RepetitionTime, InversionTime.

    Returns:
        One of ``MODALITIES``; None when the evidence is missing or contradictory, and for what is no plain contrast
        (segmentations, parameter maps, T2*, diffusion, angiography and the like).
    """
    findings = []
    if name_or_path is not None:
        findings.append(_from_words(_last_part(name_or_path)))
    if dicom:
        findings.append(_from_dicom(dicom))
    known = {finding for finding in findings if finding is not None}
    return _single(known)


def _single(candidates: set[str]) -> str | None:
    """The only candidate; None for none, for several, and for "" (known to be no contrast of this vocabulary)."""
    return (candidates.pop() or None) if len(candidates) == 1 else None


def _last_part(name_or_path: str | os.PathLike) -> str:
    text = os.fspath(name_or_path)
    if not isinstance(name_or_path, str) or _IMAGE_SUFFIX.search(text) or _PATH_START.match(text):
        text = re.split(r"[/\\]", text.rstrip("/\\"))[-1]
    text = _IMAGE_SUFFIX.sub("", text)
    return _BIDS_ENTITY_OF_NO_CONTRAST.sub("", text)


def _words(text: str) -> list[str]:
    # "brainT1" and "MNI152T1" are two words, "T1Gd" is one
    text = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=\d)(?=T[12]|PD|FLAIR)", " ", text)
    text = _MINUS_AGENT.sub("native", text)
    text = text.replace("*", "star").replace("&", " and ").lower()
    text = _PLUS_AGENT.sub(" gd ", text)
    sentence = " ".join(re.findall(r"[a-z0-9]+", text))
    sentence = _WITH_AND_WITHOUT.sub("pre post", sentence)
    sentence = _POST_SOMETHING_ELSE.sub("", sentence)
    return _NEGATED_AGENT.sub("pre", sentence).split()


def _from_words(text: str) -> str | None:
    """A contrast; "" for what is certainly none of the vocabulary or contradicts itself; None when nothing is said."""
    words = _words(text)
    if "synthetic" in words[1:]:  # "t1_FLAIR_synthetic", "FLAIR (synthetic from T1)": the word before is what was made
        return _CANONICAL.get(words[words.index("synthetic") - 1], "") if words[-1] != "sd" else ""
    if any(word in _NOT_A_CONTRAST or word.rstrip("0123456789").endswith(("seg", "mask")) for word in words):
        return ""
    found = set()
    position = 0
    while position < len(words):
        for length in range(min(_LONGEST_ALIAS_IN_WORDS, len(words) - position), 0, -1):
            name = _CANONICAL.get("".join(words[position : position + length]))
            if name is not None:
                found.add(name)
                break
        position += length
    if {"T2", "FLAIR"} <= found and _CONJUNCTIONS.isdisjoint(words):
        found.remove("T2")  # a FLAIR is a T2-weighted scan, and is often called so: "t2_tirm_tra_dark-fluid"
    if "T2" in found and not _GRADIENT_ECHO.isdisjoint(words):
        return ""
    if found and found <= {"T1", "T1ce"}:
        enhanced = "T1ce" in found or not _AGENT.isdisjoint(words)
        if enhanced and not _NO_AGENT.isdisjoint(words):
            return ""
        return "T1ce" if enhanced else "T1"
    return found.pop() if len(found) == 1 else ("" if found else None)


def _from_dicom(dicom: Mapping) -> str | None:
    if str(dicom.get("Modality", "MR")).strip() not in ("MR", ""):
        return ""
    agent_text = str(dicom.get("ContrastBolusAgent", "")).strip().lower()
    agent = agent_text not in ("", "no", "none", "n", "0", "nil")
    said = _from_words(description := str(dicom.get("SeriesDescription", "")))
    if said is None:
        said = _from_words(str(dicom.get("ProtocolName", "")))
    measured = _from_timing(dicom)
    if (said, measured) == ("T2", "FLAIR"):
        said = "FLAIR"  # Siemens names its FLAIR "t2_tirm"
    if said == "" or (said and measured and measured != said.removesuffix("ce")):
        return ""
    contrast = said or measured
    if contrast == "T1" and agent:
        return "T1ce" if _NO_AGENT.isdisjoint(_words(description)) else ""
    return contrast


def _from_timing(dicom: Mapping) -> str | None:
    """The contrast that the sequence's timing makes, where textbook ranges leave no doubt, at 1.5 T and 3 T.

    Times are in ms. Spin echo: short TR and TE give T1, long TR gives PD at short TE and T2 at long TE. Inversion
    recovery: a TI that nulls CSF (Hajnal et al. 1992) gives FLAIR, one of 0.3 to 1.4 s a T1 (MPRAGE and its kin).
    A gradient echo without inversion may be T1, a time-of-flight angiogram or T2*: no answer.
    """
    echo, repetition = _milliseconds(dicom, "EchoTime"), _milliseconds(dicom, "RepetitionTime")
    inversion = _milliseconds(dicom, "InversionTime")
    kinds = set(re.findall(r"[A-Z]+", str(dicom.get("ScanningSequence", "")).upper()))
    sequence = str(dicom.get("SequenceName", "")).lower()
    if echo is None or repetition is None or "EP" in kinds or re.match(r"\*?(ep|ez)", sequence):
        return None
    if inversion:
        if 1500 <= inversion <= 3000 and repetition >= 4000 and echo >= 60:
            return "FLAIR"
        return "T1" if 300 <= inversion <= 1400 and echo <= 30 and repetition <= 3500 else None
    if "GR" in kinds or "IR" in kinds or not ({"SE"} & kinds or re.match(r"\*?(se|tse|fse|spc)", sequence)):
        return None
    if 250 <= repetition <= 900 and echo <= 30:
        return "T1"
    if repetition >= 1800 and echo <= 40:
        return "PD"
    return "T2" if repetition >= 1800 and 70 <= echo <= 700 else None


def _milliseconds(dicom: Mapping, keyword: str) -> float | None:
    try:
        return float(dicom.get(keyword, ""))
    except (TypeError, ValueError):
        return None
