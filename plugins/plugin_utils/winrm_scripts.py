# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What way_in_winrm.py has PowerShell do, since the command prompt cannot: take a file from standard input, and hold one while it is started.

All else are commands of the prompt. The scripts are for Windows PowerShell 5.1, as every supported Windows has it, and work where only FIPS's
algorithms do. Each tells what came of it in lines that are the same in every language, and fails (exit code 1) only where PowerShell does.
"""

from __future__ import annotations

import base64
import typing as t

#: What comes on standard input are lines of base64, of which the executable is made, packed by gzip. It gets to the disk only when all of it is there:
#: a connection that breaks leaves nothing. `placed`, `there` (somebody has the folder), `damaged SHA-256`, `refused HRESULT text`.
PLACE = r'''$ErrorActionPreference='Stop'
$ProgressPreference='SilentlyContinue'
$packed=New-Object IO.MemoryStream
foreach($line in $input){$part=[Convert]::FromBase64String($line);$packed.Write($part,0,$part.Length)}
$packed.Position=0
$unpacked=New-Object IO.MemoryStream
try{(New-Object IO.Compression.GZipStream($packed,[IO.Compression.CompressionMode]::Decompress)).CopyTo($unpacked)}catch{}
$file=$unpacked.ToArray()
$sum=[BitConverter]::ToString((New-Object Security.Cryptography.SHA256CryptoServiceProvider).ComputeHash($file)).Replace('-','').ToLowerInvariant()
if($sum -ne '@sum@'){[Console]::WriteLine("damaged $sum");exit 0}
$folder="$env:SystemRoot\@name@"
$mine=$false
try{
New-Item -ItemType Directory -Path $folder|Out-Null
$mine=$true
[IO.File]::WriteAllText("$folder\session",'@session@')
[IO.File]::WriteAllBytes("$folder\agent.exe",$file)
[Console]::WriteLine('placed')
}catch{
$fault=$_.Exception.GetBaseException()
if($mine){Remove-Item -LiteralPath $folder -Recurse -Force -ErrorAction SilentlyContinue}
if(!$mine -and (Test-Path -LiteralPath $folder)){[Console]::WriteLine('there')}
else{[Console]::WriteLine(('refused {0:x8} {1}' -f $fault.HResult,$fault.Message))}
}
exit 0
'''

#: Writes config.json, and holds the executable from the comparison on in such a way that nobody can write to it, until it has started.
#: `sum SHA-256`, then for each call of sc.exe what it says, and `exit CODE`; the first that is not 0 is the last. Or `refused HRESULT text`.
START = r'''$ErrorActionPreference='Stop'
$ProgressPreference='SilentlyContinue'
$folder="$env:SystemRoot\@name@"
try{
[IO.File]::WriteAllBytes("$folder\config.json",[Convert]::FromBase64String('@config@'))
$held=[IO.File]::Open("$folder\agent.exe",'Open','Read','Read')
}catch{
$fault=$_.Exception.GetBaseException()
[Console]::WriteLine(('refused {0:x8} {1}' -f $fault.HResult,$fault.Message))
exit 0
}
$sum=[BitConverter]::ToString((New-Object Security.Cryptography.SHA256CryptoServiceProvider).ComputeHash($held)).Replace('-','').ToLowerInvariant()
[Console]::WriteLine("sum $sum")
if($sum -eq '@sum@'){
foreach($words in @calls@){
$order=New-Object Diagnostics.ProcessStartInfo("$env:SystemRoot\System32\sc.exe",$words)
$order.UseShellExecute=$false
$process=[Diagnostics.Process]::Start($order)
$process.WaitForExit()
[Console]::WriteLine("exit $($process.ExitCode)")
if($process.ExitCode -ne 0){break}
}
}
$held.Close()
exit 0
'''


def quoted(text: str) -> str:
    """A text as PowerShell reads it, with nothing in it expanded."""
    for mark in "'\u2018\u2019\u201a\u201b":
        text = text.replace(mark, mark * 2)
    return f"'{text}'"


def fill(script: str, **values: str | t.Sequence[str]) -> str:
    """A script with values in the places of its names. A text stands within quotation marks there; of several, each gets its own."""
    for name, value in values.items():
        filled = quoted(value)[1:-1] if isinstance(value, str) else ','.join(quoted(part) for part in value)
        script = script.replace(f'@{name}@', filled)
    return script


def command_line(script: str) -> str:
    """What has PowerShell run it, for the command prompt, which takes 8191 characters."""
    encoded = base64.b64encode(script.encode('utf-16-le')).decode('ascii')
    return f'powershell -NoProfile -NonInteractive -ExecutionPolicy Unrestricted -EncodedCommand {encoded}'
