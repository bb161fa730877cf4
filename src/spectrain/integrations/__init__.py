"""Small bridges to other people's training loops; each module needs its library, this package none."""
