#!/bin/sh
exec python3 /opt/suites/acceptance-programs/sqlite.py "$1" /mnt/virtiofs1 "$2" "${3:-0}"
