"""Words that every room shares: types, config, errors, the catalog, the device."""
