"""The running agent: configuration, enrolment, update pass, service loop and its command line. Nothing builds on it."""
