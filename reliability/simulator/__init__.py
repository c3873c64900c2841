"""The real worker, scheduler, wake-up and command bus, in virtual time over a store that fails on purpose."""
