"""What is wrong with a cluster: each check is a pure function of a survey."""
