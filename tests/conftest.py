"""What all tests share."""

import os

import hypothesis

# A busy machine makes single examples slow, and finding them as well; what is slow as such shows in
# the run's total. In CI the examples are the same each time, so that a run says something of what
# has changed; new ones are looked for everywhere else.
hypothesis.settings.register_profile(
    "ambientd",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    derandomize=os.environ.get("CI") == "true",
)
hypothesis.settings.load_profile("ambientd")

pytest_plugins = [
    "tests.support.requirements",
    "tests.support.last_words",
    "tests.support.parallel",
]
