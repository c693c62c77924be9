"""A study whose points cost tens of milliseconds each: long enough to be interrupted or shared."""

__all__ = ["costly_study"]

_STUDY = """\
kind: study
fidelity: event
base:
  machine: sn40l-node
  workload:
    kind: coe
    router: llama-2-7b
    experts: {{model: llama-2-7b, count: 100}}
    input: 256
    output: 20
    requests: {requests}
axes:
  workload.experts.count: {{range: [50, 810], steps: {counts}}}
  machine.fill.bandwidth: {{range: [100 GB/s, 280 GB/s], steps: {rates}}}
  machine.rdu.hbm.phy.bandwidth: {{range: [1.6 TB/s, 2.4 TB/s], steps: 5}}
  workload.batch: [4, 8]
objectives: {{tokens_per_s: max, joules_per_token: min}}
"""


def costly_study(*, requests: int, counts: int, rates: int, baseline: bool = False) -> str:
    """Return a study of 10 x counts x rates points at the event level.

    Args:
        requests: Requests that each point plays; about a fifth of a millisecond each.
        counts: Numbers of experts.
        rates: Rates of the slow tier.
        baseline: Whether a second machine plays each point too.
    """
    study = _STUDY.format(requests=requests, counts=counts, rates=rates)
    return study + ("baseline: {machine: dgx-a100}\n" if baseline else "")
