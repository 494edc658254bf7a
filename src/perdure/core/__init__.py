"""Words: identifiers, entries, records, errors, limits. Pure values that every other room speaks."""
