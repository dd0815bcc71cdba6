"""The stages of an update, a file a kind; SOAP has its own."""
