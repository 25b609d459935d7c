# SPDX-License-Identifier: Apache-2.0
# install(): headers, libraries, the program, and a package that find_package(espalier) finds.
