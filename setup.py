"""With the native extension where there is a C++ compiler, else the Python part alone."""

import os
import shlex
import shutil

from setuptools import setup

compilers = shlex.split(os.environ.get("CXX", ""))[:1] or ["c++", "g++", "clang++"]

if any(map(shutil.which, compilers)):
    setup(cmake_source_dir=".")
else:
    names = ", ".join(compilers)
    print(f"fastcnn: no C++ compiler ({names}) on the PATH: leaving out the native extension")
    setup()
