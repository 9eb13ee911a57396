"""What every room may use: config, commands, atomic files, processes, hashes, errors."""
