"""JupyterHub for one class on one machine: `jupyterhub -f hub/jupyterhub_config.py`, as root.

Every student is a user of the system, with a home that nobody else can read; JupyterLab starts as
that user. Lessons go out and come back by nbgrader's exchange: see hub/README.md. Checks run in the
student's process to help, never to grade: `saelearn grade` does that, elsewhere.
"""

import os
import sys
from pathlib import Path

c = get_config()  # noqa: F821

# Behind a proxy that speaks HTTPS; for the whole network give JupyterHub a certificate instead:
# c.JupyterHub.ssl_key, c.JupyterHub.ssl_cert.
c.JupyterHub.bind_url = "http://127.0.0.1:8000"

c.JupyterHub.authenticator_class = "pam"  # names and passwords of the system
c.PAMAuthenticator.open_sessions = False
c.Authenticator.allow_all = False  # only who belongs to the class
c.LocalAuthenticator.allowed_groups = {os.environ.get("SAELEARN_CLASS", "students")}
TEACHER = os.environ.get("SAELEARN_TEACHER", "teacher")
c.Authenticator.allowed_users = {TEACHER}  # an administrator outside the class is not let in else
c.Authenticator.admin_users = {TEACHER}

c.JupyterHub.spawner_class = "localprocess"
c.Spawner.cmd = [sys.executable, "-m", "jupyterhub.singleuser"]  # of this environment
c.Spawner.default_url = "/lab"
c.Spawner.notebook_dir = "~"
c.Spawner.environment = {
    "OMP_NUM_THREADS": "1",  # shared cores
    "OMP_WAIT_POLICY": "passive",
    # `saelearn` and `nbgrader` in a terminal
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
}
c.Spawner.args = ["--KernelManager.transport_encryption=auto"]
# A login shell, as a terminal of JupyterLab is by default, may set PATH anew and lose these two.
c.Spawner.args += ["--ServerApp.terminado_settings=shell_command=/bin/bash"]

# Who leaves a tab open keeps a kernel of half a gigabyte: an idle one is ended after an hour.
c.Spawner.args += ["--MappingKernelManager.cull_idle_timeout=3600"]
