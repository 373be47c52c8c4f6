#!/usr/bin/python
# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Documentation of the action of this name; it runs on the controller, from plugins/action/install.py."""

from __future__ import annotations

DOCUMENTATION = r'''
module: install
short_description: Install a package on a Windows or Linux target
version_added: 0.1.0
description:
  - Installs one package from a file on the controller. The file is sent to the target, its installer is run silently, its result is read
    by the installer's own return codes and checked against the target's package database, and the file is removed from the target again.
  - Where the package is installed already, nothing is sent.
  - The installer runs as the agent's account, C(root) or C(NT AUTHORITY\SYSTEM), in a folder of its own with an empty standard input,
    and is never asked for a restart. What it prints is shown while it runs with C(-v), unless the task sets C(no_log).
extends_documentation_fragment:
  - sojourn.deploy.action
attributes:
  check_mode:
    details: Looks at the target to tell whether the package is needed. Sends no package and runs nothing but O(detect).
  diff_mode:
    support: full
options:
  src:
    description:
      - The package, a file on the controller.
      - A relative path is looked up in the C(files) folders of the role and the playbook, then beside the inventory, then in the folder
        that Ansible was started in.
    type: path
    required: true
  kind:
    description:
      - The kind of package. Without it, it is found from the file's name, and where that does not tell, from its first bytes.
      - V(msi) - Windows Installer, run by C(msiexec /i ... /qn /norestart /l*v ...).
      - V(exe) - a Windows installer; give it in O(arguments) what makes it silent.
      - V(msu) - Windows update, run by C(wusa ... /quiet /norestart).
      - V(rpm) - run by C(rpm -U). What it depends on must be installed, or come before it.
      - V(deb) - run by C(apt-get install) where apt is there, which fetches what the package depends on from the target's own sources, and
        by C(dpkg -i) elsewhere. Configuration files that were changed on the target are kept.
      - V(sh) - a shell script, a self-extracting package (C(.run), C(.bin)) or another program for Linux.
      - V(scexe) - HP's self-extracting package for Linux.
      - V(zip) - an archive, unpacked on the target, in which O(entry) is run by the rules of its own kind.
    type: str
    choices: [msi, exe, msu, rpm, deb, sh, scexe, zip]
  entry:
    description: The file in a V(zip) package that is run, in its own folder. Its kind is found from its name.
    type: str
  arguments:
    description:
      - The installer's arguments, beside those that its kind has by itself, as a list or a string.
      - A list is quoted as the target needs it, also Windows Installer's properties (C(NAME=a value)).
      - A string is used as it stands on Windows, and split as a shell does it (with none running) on Linux.
    type: raw
  environment:
    description: Environment variables for the installer and for O(detect).
    type: dict
    default: {}
  timeout:
    description:
      - Seconds that the installer may run; then its whole process tree is killed and the package has failed. V(0) is no limit.
      - The time for sending the package does not count.
    type: int
    default: 3600
  busy_timeout:
    description:
      - Seconds to go on trying while another installation is running on the target, which Windows Installer tells by code 1618, and apt by
        its lock.
    type: int
    default: 300
  return_codes:
    description:
      - What the installer's exit codes mean. Without it, the table of its kind - V(msi), V(exe), V(msu), V(hp_linux) for V(scexe), V(generic)
        for the others.
      - The name of a table - V(generic), V(msi), V(exe), V(msu), V(hp_windows), V(hp_linux), V(hp_linux_devices), V(hp_sum) or V(dell).
      - Or a map of your own, from codes to states, or to C(state) and C(meaning); codes that it does not name keep their meaning in the
        table of the kind.
      - A code that is in no table is a failure.
    type: raw
  name:
    description:
      - Name of the package in the target's package database. Without it, a V(deb), V(rpm) or V(msi) package tells it.
      - On Windows, the display name of the list of installed programs; it may have C(*) and C(?).
    type: str
  version:
    description: Its version there. Without it, a V(deb), V(rpm) or V(msi) package tells it; for others, any version will do.
    type: str
  product_id:
    description: On Windows, the key of the package in the list of installed programs. Without it, an V(msi) package's product code.
    type: str
  creates:
    description:
      - A path on the target that is there once the package is installed.
      - Decides in the place of the package database whether the package is needed, and whether its installation succeeded.
    type: str
  detect:
    description:
      - A command, as a string or a list, which ends with 0 on a target that has the package. It runs in check mode too.
      - Decides in the place of the package database whether the package is needed, and whether its installation succeeded.
      - A string is run by C(/bin/sh) on Linux, and as a command line of its own on Windows.
    type: raw
  checksum:
    description: SHA-256 that the file must have, in hexadecimal digits, with or without C(sha256:) before them.
    type: str
  log:
    description:
      - Path of the log that the installer writes on the target; relative to the folder in which it runs, which is removed with the package.
      - An V(msi) package's log needs no path.
    type: str
  log_dest:
    description:
      - File on the controller that takes the whole log, or a folder (which exists, or ends with a slash), in which it is named after host
        and package. A relative path begins in the folder that Ansible was started in.
      - Where the installer writes no log, what it printed is saved.
    type: path
  allow_downgrade:
    description: Whether an older version is put in the place of a newer one. Otherwise the newer one is left, as V(already_current).
    type: bool
    default: false
  reinstall:
    description: Whether the package is installed again where the same version is installed, which changes the target each time.
    type: bool
    default: false
  skip_wrong_family:
    description:
      - Whether a package that does not run on this family of targets is V(not_applicable) in the place of an error, so that one list of
        packages can serve Windows and Linux.
    type: bool
    default: false
author:
  - The sojourn.deploy authors (@sojourn)
seealso:
  - module: sojourn.deploy.recap
  - module: sojourn.deploy.cleanup
'''

EXAMPLES = r'''
- name: Install a package that tells its own name and version
  sojourn.deploy.install:
    src: hello_2.10-3_amd64.deb

- name: Install an MSI with a property, and keep its log
  sojourn.deploy.install:
    src: tool-4.2.msi
    arguments:
      - INSTALLDIR=C:\Program Files\Tool
    log_dest: logs/

- name: Install an NSIS installer, which the list of installed programs knows afterwards
  sojourn.deploy.install:
    src: setup.exe
    arguments: /S
    name: Tool
    version: "4.2"

- name: Update firmware by an HP component on Windows
  sojourn.deploy.install:
    src: cp012345.exe
    arguments: /s
    return_codes: hp_windows
    timeout: 7200

- name: Run the installer in an archive, which has codes of its own
  sojourn.deploy.install:
    src: bundle.zip
    entry: linux/install.sh
    arguments: [--silent, --prefix, /opt/bundle]
    creates: /opt/bundle/VERSION
    return_codes:
      10: reboot_required
      20:
        state: not_applicable
        meaning: no such adapter
'''

RETURN = r'''
state:
  description:
    - V(installed) - the package was installed (in check mode, it would be).
    - V(already_current) - it was there, in this version or a newer one.
    - V(reboot_required) - it was installed, and the target must be restarted.
    - V(failed) - it was not installed, or not as it should be.
    - V(not_applicable) - it is not for this target.
  returned: always
  type: str
taken_up:
  description:
    - Whether it was installed by an earlier run that was cut off, and this task waited for that installation or took its result.
  returned: when it was
  type: bool
exit_code:
  description: The installer's exit code, V(null) where none was run.
  returned: always
  type: int
meaning:
  description: What the code means by O(return_codes).
  returned: always
  type: str
package:
  description: The package.
  returned: always
  type: dict
  contains:
    name:
      description: Its name, where it is known.
      type: str
    version:
      description: Its version, where it is known.
      type: str
    kind:
      description: Its kind.
      type: str
    checksum:
      description: SHA-256 of the file, where it was computed - for O(checksum), or on sending.
      type: str
version_before:
  description: Version in the package database before, V(null) where there was none.
  returned: always
  type: str
version_after:
  description: Version in the package database afterwards (in check mode, what it would be).
  returned: always
  type: str
seconds:
  description: Seconds that it took.
  returned: always
  type: dict
  contains:
    transfer:
      description: To send the package.
      type: float
    install:
      description: That the installer ran.
      type: float
    total:
      description: In all.
      type: float
bytes_sent:
  description: Bytes of the package that were sent to the target.
  returned: always
  type: int
log:
  description: The last 64 Ki characters of the installer's log.
  returned: always
  type: str
log_file:
  description: The file on the controller that has the whole log.
  returned: when O(log_dest) is given and the installer was run
  type: str
stdout:
  description: The last 64 Ki characters of the installer's standard output.
  returned: always
  type: str
stderr:
  description: The same of its standard error.
  returned: always
  type: str
error:
  description: Code, sentence and remedy of the error; C(msg) has them in one line.
  returned: failure
  type: dict
  sample:
    code: SD-703
    sentence: "The installer of 'tool 4.2' ended with 1603: fatal error during the installation."
    remedy: Read the installer's log in the result; if the code means success, add it to return_codes.
'''
