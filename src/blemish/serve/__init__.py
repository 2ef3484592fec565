"""The service: pictures in over HTTP, predictions out; versions of detectors kept and swapped."""
