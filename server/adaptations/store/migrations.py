"""Manifests of earlier versions, as this version would have written them.

A manifest is migrated whenever it is read, and its file stays as it is, so that the version that
wrote it can still read it.
"""

from typing import Any

VERSION = 2
"""The version that is written. 1: refine-server 0.1 and 0.2, whose manifests name no version."""


def migrate(version: int, manifest: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest of a version as one of ``VERSION``.

    Raises:
        KeyError, TypeError, ValueError: it does not have the form of its version.
    """
    return _from_1(manifest) if version == 1 else manifest


def _from_1(manifest: dict[str, Any]) -> dict[str, Any]:
    config = manifest["config"]
    if "prefix" in config:  # 0.1, whose settings were all on one level
        config = _nested(config)
    description = {**manifest["description"]}
    description["report"] = _renamed_report(description["report"])
    if description.get("overflow") is not None:
        description["overflow"] = _renamed(description["overflow"], document_tokens="sent_tokens")
    return {
        **manifest,
        "config": config,
        "description": description,
        "data_file": "document.safetensors",
    }


def _renamed_report(report: dict[str, Any]) -> dict[str, Any]:
    reason = "no_better_step" if report["guard"] == "kept_base" else report["guard"]
    held_out = [_renamed(result, reward="accuracy") for result in report.get("held_out", ())]
    steps = [{"attention": 0.0, **step} for step in report["steps"]]  # a term that 0.1 had not
    renamed = _renamed(report, guard="kept_base_reason")
    return {**renamed, "kept_base_reason": reason, "steps": steps, "held_out": held_out}


def _renamed(stored: dict[str, Any], **names: str) -> dict[str, Any]:
    """Return an object with the present names of its fields, by the former ones."""
    return {names.get(name, name): value for name, value in stored.items()}


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of an adaptation by 0.1 in their present form.

    They only tell how the entry was made, so what has no effect on its use is left out: the clip
    ratio, and that SGD was an alternative to AdamW.
    """
    by_query = flat["selection"] == "query"
    on: dict[str, Any] = {"kind": "document"}
    if flat["prefix"] == "local":
        on = {"tokens": flat["span_tokens"], "ntp_on": flat["ntp_on"] or "spans"}
        if by_query:
            on |= {"kind": "query_spans", "learn_as": flat["spans_as"]}
        else:
            on |= {"kind": "spans", "choose": flat["selection"]}
    return {
        "objective": flat["objective"] if flat["steps"] else "none",
        "on": on,
        "rollouts": {
            "positions": flat["chunks"],
            "per_position": flat["rollouts"],
            "tokens": flat["rollout_tokens"],
            "temperature": flat["rollout_temperature"],
            "select": "entropy" if by_query else flat["selection"],
            "reward": flat["reward"],
            "demonstration": flat["demonstration"],
        },
        "loss": {"ntp": flat["ntp_coef"], "grpo": flat["grpo_coef"], "kl": flat["kl_coef"]},
        "optimizer": {
            "steps": max(flat["steps"], 1),
            "learning_rate": flat["learning_rate"],
            "max_grad_norm": flat["max_grad_norm"],
            "max_seconds": flat["max_seconds"],
        },
        "fast_weights": {"targets": flat["targets"], "rank": flat["rank"]},
        "guard": flat["guard"],
        "seed": flat["seed"],
    }
