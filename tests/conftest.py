"""What all tests share."""

import hypothesis

# A busy machine makes single examples slow; what is slow as such shows in the run's total.
hypothesis.settings.register_profile("ambientd", deadline=None)
hypothesis.settings.load_profile("ambientd")

pytest_plugins = ["tests.support.requirements", "tests.support.last_words"]
