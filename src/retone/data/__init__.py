"""From files to padded batches: sources, row shapes, splits, the token ledger."""
