"""What a run found, and its file: JSON with every sample."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.memory import Memory
from bench.series import Results, Series, by_key
from bench.workloads import UnknownWorkloadError, workload

FORMAT = 2


class UnreadableResultError(ValueError):
    """The file is no result of this suite."""


@dataclass
class Result:
    """A run.

    Attributes:
        machine: what the figures depend on: processor, versions, commit.
        device: cpu or cuda.
        series: every contestant on every workload.
        cores_used_by_others: how busy other programs kept the machine meanwhile.
        memory: what steps allocate, where that was asked for.
        notes: what a reader must know besides.
    """

    machine: dict[str, Any]
    device: str
    series: list[Series]
    cores_used_by_others: float = 0.0
    memory: list[Memory] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def by_key(self) -> Results:
        """The series that have samples, by workload and contestant."""
        return by_key(self.series)

    @property
    def workloads(self) -> list[str]:
        """The names of the workloads, in their order."""
        return list(dict.fromkeys(one.workload for one in self.series))

    @property
    def contestants(self) -> list[str]:
        """The names of the contestants that have samples, in their order."""
        return list(dict.fromkeys(one.contestant for one in self.series if one.samples))

    def save(self, file: Path) -> None:
        """Write the file: a line for each series."""
        about = {
            "format": FORMAT,
            "device": self.device,
            "machine": self.machine,
            "cores_used_by_others": round(self.cores_used_by_others, 3),
            "notes": self.notes,
            "memory": [asdict(one) for one in self.memory],
            "workloads": {
                name: {
                    "arrays": len(workload(name).shapes),
                    "elements": workload(name).elements,
                    "step_bytes": workload(name).step_bytes,
                }
                for name in self.workloads
            },
        }
        lines = [f" {json.dumps(name)}: {json.dumps(value)}," for name, value in about.items()]
        series = ",\n".join(f"  {json.dumps(_filled(one))}" for one in self.series)
        file.write_text("\n".join(["{", *lines, ' "series": [', series, " ]", "}"]) + "\n")

    @classmethod
    def load(cls, file: Path) -> "Result":
        """Read a file.

        Raises:
            UnreadableResultError: it is not one, or of another format.
        """
        try:
            saved = json.loads(file.read_text())
            if saved["format"] != FORMAT:
                raise UnreadableResultError(f"{file} has format {saved['format']}, this reads {FORMAT}")
            result = cls(
                saved["machine"],
                saved["device"],
                [Series(**one) for one in saved["series"]],
                saved["cores_used_by_others"],
                [Memory(**one) for one in saved["memory"]],
                saved["notes"],
            )
            for name in result.workloads:
                workload(name)
            return result
        except UnknownWorkloadError as error:
            raise UnreadableResultError(
                f"{file} is of other sources, which have more workloads: {error}"
            ) from error
        except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
            raise UnreadableResultError(f"{file} is no result of a run: {error!r}") from error


def _filled(one: Series) -> dict[str, Any]:
    """What a series has, times to four digits, which is more than they are worth."""
    values = {name: value for name, value in asdict(one).items() if value or name in ("error", "samples")}
    return {
        name: [float(f"{sample:.4g}") for sample in value] if isinstance(value, list) else value
        for name, value in values.items()
    }
