"""A night's run over an archive: what to do, who does it, and the journal that survives whatever happens."""
