"""Takes parts out of wheels: the folder of the wheels, the folder to write to, and the names of libraries."""

import os
import shutil
import sys
import zipfile

wheels, out, wanted = sys.argv[1], sys.argv[2], set(sys.argv[3:])
for wheel in sorted(os.listdir(wheels)):
    with zipfile.ZipFile(os.path.join(wheels, wheel)) as archive:
        for member in archive.infolist():
            base = os.path.basename(member.filename)
            if member.filename.startswith("torch/include/") and base:
                target = os.path.join(out, *member.filename.split("/")[1:])
            elif base in wanted:
                target = os.path.join(out, "lib", base)
            else:
                continue
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with archive.open(member) as source, open(target, "wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
