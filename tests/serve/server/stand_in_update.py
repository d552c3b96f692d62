"""Stands in for ``cilseg update``: same options, same exit codes, same files; what it does is set by the tag list.

``{"plan": {"steps": 3, "step_s": 0.1, "exit": 3, "verdict": "HOLD", "stubborn": false}}`` beside the images.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

parser = argparse.ArgumentParser()
for flag in ("--tags", "--image-root", "--from", "--method", "--seed", "--untagged", "--on-regression"):
    parser.add_argument(flag)
parser.add_argument("--json", action="store_true")
parser.add_argument("--resume", action="store_true")
asked = parser.parse_args()
document = json.loads(Path(asked.tags).read_text())
plan = {"steps": 3, "step_s": 0.1, "exit": 3, "verdict": "HOLD", **document.pop("plan", {})}
run = Path(os.environ["CILSEG_REGISTRY"]) / "runs" / f"update-{Path(asked.tags).parent.name}"
run.mkdir(parents=True, exist_ok=True)
if plan.get("stubborn"):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
done = len((run / "log.jsonl").read_text().splitlines()) if asked.resume and (run / "log.jsonl").exists() else 0
print(
    f"starting at {done} from {vars(asked)['from']} {sorted(k for k in vars(asked) if vars(asked)[k])}", file=sys.stderr
)
print("secrets seen:", "CILSEG_TOKENS" in os.environ, file=sys.stderr)
try:
    with (run / "log.jsonl").open("a") as log:
        for step in range(done, plan["steps"]):
            time.sleep(plan["step_s"])
            log.write(json.dumps({"iteration": step + 1, "epoch": step, "loss": 1 / (step + 1)}) + "\n")
            log.flush()
            print(f"step {step + 1}", file=sys.stderr)
except KeyboardInterrupt:
    print("error: interrupted", file=sys.stderr)
    sys.exit(130)
if plan["exit"] not in (0, 3):
    print("error: the tags make no sense\n  - line two", file=sys.stderr)
    sys.exit(plan["exit"])
print(json.dumps({"candidate": "colours:2", "verdict": plan["verdict"], "gate": {"headline": "as it is"}}))
sys.exit(plan["exit"])
