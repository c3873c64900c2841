"""Every failpoint of the code, and whose process the sweep kills there."""

SWEPT = {
    "claim.committed": "worker",
    "claim.sending": "worker",
    "insert.committed": "producer",
    "insert.sending": "producer",
    "job.ran": "worker",
    "job.starting": "worker",
    "notify.sending": "producer",
    "rescue.closed": "rescuer",
    "rescue.closing": "rescuer",
    "rescue.committed": "rescuer",
    "settle.committed": "worker",
    "settle.follow_ups": "worker",
    "settle.sending": "worker",
}
