"""What lies on the station's disk, below the buffer: records, day files, the ledger, quarantine, retention."""
