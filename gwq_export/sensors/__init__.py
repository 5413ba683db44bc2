"""What a machine tells of its own state: clock rates, temperatures, throttling, power.

Every reader takes a `system.System`, so that tests can hand it the recorded files of another
device. A sensor that is missing comes with the reason, never with a guess.

Modules import only those listed above them:
    system
    processors
    thermal
    throttling
    nvml
    meters
    power
    identity
    watch
"""
