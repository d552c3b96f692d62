"""How a judgement is shown, and its exit code; shared by ``update`` and ``validate``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from cilseg.cli.common import print_json, print_table

if TYPE_CHECKING:
    from pathlib import Path

    from cilseg.update import Judgement


def finish(judgement: Judgement, *, json_: bool, hint: str = "", junit: Path | None = None) -> None:
    """Print scores and verdict; exit with 0 for PROMOTE or a plain evaluation, 3 otherwise.

    ``hint`` ends the commands that are suggested; ``junit`` is where the verdict goes as XML.
    """
    result, unfused = judgement.result, judgement.before_fusion
    if junit is not None and result is not None:
        from cilseg.bundle import write_file_atomically
        from cilseg.evaluate.junit import junit_xml

        reference = judgement.reference.ref if judgement.reference else ""
        write_file_atomically(junit, junit_xml(result, title=f"{judgement.candidate.ref} against {reference}"))
    if json_:
        print_json(
            {
                "candidate": judgement.candidate.ref,
                "reference": judgement.reference.ref if judgement.reference else None,
                "scores": judgement.scores,
                "reference_scores": judgement.reference_scores,
                "verdict": result.verdict if result else None,
                "gate": result.to_json() if result else None,
                "report": str(judgement.report) if judgement.report else None,
                "fused_from": unfused.candidate.ref if unfused else None,
            }
        )
    else:
        if unfused is not None and unfused.result is not None:
            typer.echo(f"{unfused.candidate.ref}: {unfused.result.headline}")
            typer.echo(
                f"{judgement.candidate.ref} mixes it with its parent and is judged on images that the share was not "
                "chosen on:"
            )
        _print_scores(judgement)
        if result is not None:
            typer.echo(result.headline)
            for line in (*result.reasons, *result.notes, *result.advice):
                typer.echo(f"  {line}")
            typer.echo(f"  {result.error_statement}")
            typer.echo(f"Report: {judgement.report}")
            if result.verdict == "PROMOTE":
                typer.echo(f"Next: cilseg promote {judgement.candidate.ref}{hint}")
        elif not judgement.scores:
            typer.echo(f"{judgement.candidate.ref} is registered and was not judged.")
            typer.echo(f"Next: cilseg validate {judgement.candidate.ref}{hint}")
    if result is not None and result.verdict != "PROMOTE":
        raise typer.Exit(3)


def _print_scores(judgement: Judgement) -> None:
    now, before = judgement.scores, judgement.reference_scores
    if not now:
        return
    keys = [(k, now[k], before[k] if before else None) for k in ("old", "new", "all")]
    keys += [(n, v, before["iou"].get(n) if before else None) for n, v in now["iou"].items()]
    rows = [(n, _cell(b), _cell(v), _cell(None if b is None or v is None else v - b, "+.1f")) for n, v, b in keys]
    if before is None:
        print_table(
            ["IoU %", judgement.candidate.ref], [(r[0], r[2]) for r in rows], right={judgement.candidate.ref: True}
        )
        return
    reference = judgement.reference.ref if judgement.reference else ""
    print_table(
        ["IoU %", reference, judgement.candidate.ref, "change"],
        rows,
        right={reference: True, judgement.candidate.ref: True, "change": True},
    )


def _cell(value: float | None, form: str = ".1f") -> str:
    return "-" if value is None else format(value, form)
