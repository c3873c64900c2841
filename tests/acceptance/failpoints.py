"""Every failpoint of the code, and whose process the sweep kills there."""

SWEPT = {
    "claim.sending": ("worker",),
    "claim.committed": ("worker",),
    "job.starting": ("worker",),
    "job.ran": ("worker",),
    "settle.sending": ("worker",),
    "settle.follow_ups": ("worker",),
    "settle.committed": ("worker",),
    "rescue.closing": ("rescuer",),
    "rescue.closed": ("rescuer",),
    "rescue.committed": ("rescuer",),
    "command.loaded": ("publisher",),
    "command.handled": ("publisher",),
    "commit.sending": ("publisher",),
    "commit.committed": ("publisher",),
    "command.committed": ("publisher",),
    "insert.sending": ("producer",),
    "insert.committed": ("producer",),
    "notify.sending": ("worker", "rescuer", "producer"),
}
