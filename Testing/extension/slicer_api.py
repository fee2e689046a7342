"""Names of Slicer's API that no Python package carries, with the file of the source that declares each.

Only what PythonQt can reach is listed: properties, slots, invokable methods and signals. Slicer's files are those of
version 5.12, CTK's those of August 2026.
"""

# Class: (class it inherits from, header, slots and invokable methods, signals, properties)
CLASSES = {
    "ctkCollapsibleButton": (
        "QAbstractButton",
        "Libs/Widgets/ctkCollapsibleButton.h",
        "",
        ("contentsCollapsed(bool) "),
        (
            "buttonTextAlignment collapsed collapsedHeight contentsFrameShadow contentsFrameShape "
            "contentsLineWidth contentsMidLineWidth flat indicatorAlignment "
        ),
    ),
    "ctkSliderWidget": (
        "QWidget",
        "Libs/Widgets/ctkSliderWidget.h",
        ("reset setDecimals setSpinBoxVisible setValue "),
        ("decimalsChanged(int) valueChanged(double) valueIsChanging(double) "),
        (
            "decimals invertedAppearance invertedControls maximum minimum pageStep popupSlider prefix singleStep "
            "spinBoxAlignment spinBoxVisible suffix synchronizeSiblings tickInterval tickPosition tracking value "
        ),
    ),
    "qMRMLNodeComboBox": (
        "QWidget",
        "Libs/MRML/Widgets/qMRMLNodeComboBox.h",
        (
            "addAttribute addMenuAction addNode currentNode editCurrentNode mrmlScene nodeCount nodeFromIndex "
            "nodeTypeLabel removeAttribute removeCurrentNode renameCurrentNode setCurrentNode setCurrentNodeID "
            "setCurrentNodeIndex setMRMLScene setNodeTypeLabel sortFilterProxyModel "
        ),
        (
            "currentNodeChanged(bool) currentNodeChanged(vtkMRMLNode*) currentNodeIDChanged(QString) "
            "currentNodeRenamed(QString) nodeAboutToBeEdited(vtkMRMLNode*) nodeAboutToBeRemoved(vtkMRMLNode*) "
            "nodeActivated(vtkMRMLNode*) nodeAdded(vtkMRMLNode*) nodeAddedByUser(vtkMRMLNode*) "
            "nodeAddedByUserAction(vtkMRMLNode*) "
        ),
        (
            "addEnabled baseName currentNodeID currentNodeId editEnabled hideChildNodeTypes "
            "interactionNodeSingletonTag nodeTypes noneDisplay noneEnabled removeEnabled renameEnabled "
            "selectNodeUponCreation showChildNodeTypes showHidden sizeAdjustPolicy "
        ),
    ),
    "qMRMLWidget": (
        "QWidget",
        "Libs/MRML/Widgets/qMRMLWidget.h",
        ("mrmlScene pixmapFromIcon postInitializeApplication preInitializeApplication setMRMLScene "),
        ("mrmlSceneChanged(vtkMRMLScene*) "),
        "",
    ),
    "qSlicerCoreApplication": (
        "QApplication",
        "Base/QTCore/qSlicerCoreApplication.h and qSlicerBaseQTCorePythonQtDecorators.h",
        (
            "addModuleAssociatedNodeType allModuleAssociatedNodeTypes applicationLogic applicationUpdateManager "
            "caCertificatesPath coreIOManager defaultSettings dicomDatabase environment errorLogModel "
            "extensionsManagerModel handleURIArguments isEnvironmentVariableValueSet loadCaCertificates loadFiles "
            "loadLanguage loadTranslations logUsageEvent moduleDocumentationUrl moduleLogic moduleManager "
            "modulesAssociatedWithNodeType mrmlScene openUrl pauseRender registerResource "
            "removeModuleAssociatedNodeType restart resumeRender revisionUserSettings setEnvironmentVariable "
            "setRenderPaused settings showConsoleMessage startupEnvironment testingEnabled "
            "toSlicerHomeAbsolutePath toSlicerHomeAbsolutePaths toSlicerHomeRelativePath "
            "toSlicerHomeRelativePaths translationFolders unregisterResource userSettings "
        ),
        (
            "invokeEventRequested(unsignedint,void*,unsignedlong,void*) mrmlSceneChanged(vtkMRMLScene*) "
            "urlReceived(QString) usageEventLogged(QString,QString) "
        ),
        (
            "applicationLocale applicationLocaleName arch cachePath defaultScenePath documentationBaseUrl "
            "documentationLanguage documentationVersion extensionsInstallPath intDir isCustomMainApplication "
            "isInstalled isUsageLoggingSupported launcherExecutableFilePath launcherSettingsFilePath "
            "mainApplicationDisplayName mainApplicationMajorVersion mainApplicationMinorVersion "
            "mainApplicationName mainApplicationPatchVersion mainApplicationRepositoryRevision "
            "mainApplicationRepositoryUrl mainApplicationRevision majorVersion minorVersion os platform "
            "releaseType repositoryBranch repositoryRevision repositoryUrl revision slicerDefaultSettingsFilePath "
            "slicerHome slicerRevisionUserSettingsFilePath slicerSharePath slicerUserSettingsFilePath "
            "startupWorkingPath temporaryPath "
        ),
    ),
    "qSlicerApplication": (
        "qSlicerCoreApplication",
        "Base/QTGUI/qSlicerApplication.h",
        (
            "commandOptions confirmRestart createDICOMBrowserForMainDatabase currentLogFile ioManager "
            "isCodePageUtf8 launchDesigner layoutManager loadFiles logApplicationInformation "
            "numberOfRecentLogFilesToKeep openApplicationDownloadWebsite openExtensionsCatalogWebsite "
            "openExtensionsManagerDialog openNodeModule openSettingsDialog pauseRender pythonConsole "
            "pythonConsoleLogLevel pythonManager recentLogFiles resumeRender setHasBorderInFullScreen "
            "setLayoutManager setPythonConsoleLogLevel setRenderPaused settingsDialog testingUtility "
            "windowsActiveCodePage windowsOSBuildNumber "
        ),
        ("renderPaused(bool) startupCompleted() "),
        "",
    ),
    "qMRMLLayoutManager": (
        "ctkLayoutFactory",
        "Libs/MRML/Widgets/qMRMLLayoutManager.h",
        (
            "activeMRMLPlotViewNode activeMRMLTableViewNode activeMRMLThreeDViewNode activePlotRenderer "
            "activeTableRenderer activeThreeDRenderer addMaximizedViewNode layoutLogic mrmlColorLogic mrmlScene "
            "mrmlSliceLogics mrmlViewFactories mrmlViewFactory mrmlViewLogics pauseRender plotWidget "
            "registerViewFactory removeAllMaximizedViewNodes removeMaximizedViewNode resetSliceViews "
            "resetThreeDViews resumeRender setEnabled setLayout setLayoutNumberOfCompareViewColumns "
            "setLayoutNumberOfCompareViewRows setMRMLColorLogic setMRMLScene setRenderPaused sliceViewNames "
            "sliceWidget tableWidget threeDWidget viewWidget viewWidgets "
        ),
        (
            "activeMRMLPlotViewNodeChanged(vtkMRMLPlotViewNode*) "
            "activeMRMLTableViewNodeChanged(vtkMRMLTableViewNode*) "
            "activeMRMLThreeDViewNodeChanged(vtkMRMLViewNode*) activePlotRendererChanged(vtkRenderer*) "
            "activeTableRendererChanged(vtkRenderer*) activeThreeDRendererChanged(vtkRenderer*) "
            "layoutChanged(int) nodeAboutToBeEdited(vtkMRMLNode*) "
        ),
        ("enabled layout plotViewCount tableViewCount threeDViewCount "),
    ),
    "qSlicerLayoutManager": (
        "qMRMLLayoutManager",
        "Base/QTGUI/qSlicerLayoutManager.h",
        ("setScriptedDisplayableManagerDirectory "),
        ("selectModule(QString) "),
        "",
    ),
    "qMRMLSliceWidget": (
        "qMRMLAbstractViewWidget",
        "Libs/MRML/Widgets/qMRMLSliceWidget.h",
        (
            "controllerWidget fitSliceToBackground imageDataConnection interactorStyle logic mrmlAbstractViewNode "
            "mrmlSliceCompositeNode mrmlSliceNode overlayCornerAnnotation setImageDataConnection "
            "setMRMLAbstractViewNode setMRMLScene setMRMLSliceNode setSliceLogics setSliceOffsetSliderOrientation "
            "setSliceOrientation sliceController sliceLogic sliceVerticalController sliceView viewWidget "
        ),
        ("nodeAboutToBeEdited(vtkMRMLNode*) "),
        ("sliceOffsetSliderOrientation sliceOrientation sliceViewColor sliceViewLabel sliceViewName "),
    ),
    "qMRMLSliceView": (
        "ctkVTKSliceView",
        "Libs/MRML/Widgets/qMRMLSliceView.h",
        (
            "addDisplayableManager convertDeviceToXYZ convertRASToXYZ convertXYZToRAS "
            "displayableManagerByClassName getDisplayableManagers interactorObserver mrmlSliceNode "
            "setDefaultViewCursor setMRMLScene setMRMLSliceNode setViewCursor sliceViewInteractorStyle "
            "unsetViewCursor "
        ),
        "",
        "",
    ),
    "ctkVTKSliceView": (
        "ctkVTKAbstractView",
        "Libs/Visualization/VTK/Widgets/ctkVTKSliceView.h",
        (
            "lightBoxRendererManager resetCamera setColorLevel setColorWindow setHighlightedBoxColor "
            "setImageDataConnection setLightBoxRendererManagerColumnCount setLightBoxRendererManagerRowCount "
            "setRenderWindowLayoutType "
        ),
        ("resized(QSize) "),
        ("colorLevel colorWindow highlightedBoxColor renderWindowLayoutType "),
    ),
    "ctkVTKAbstractView": (
        "QWidget",
        "Libs/Visualization/VTK/Widgets/ctkVTKAbstractView.h",
        (
            "VTKWidget cornerAnnotation forceRender interactor interactorStyle pauseRender renderWindow "
            "resumeRender scheduleRender setBackgroundColor setBackgroundColor2 setCornerAnnotationText "
            "setFPSVisible setGradientBackground setMaximumUpdateRate setRenderEnabled setRenderPaused "
            "setUseDepthPeeling "
        ),
        "",
        (
            "backgroundColor backgroundColor2 cornerAnnotationText fpsVisible gradientBackground "
            "maximumUpdateRate renderEnabled useDepthPeeling "
        ),
    ),
}

# What is inherited from Slicer's and CTK's classes that are not listed: the class of Qt to look it up in.
QT_BASES = {"ctkLayoutFactory": "QObject", "qMRMLAbstractViewWidget": "QWidget"}

# Modules of Slicer's Python: names that they define. slicer.util is in slicer-core.
MODULES = {
    # Base/Python/slicer/packaging.py
    "slicer.packaging": "load_requirements load_pyproject_dependencies pip_check pip_ensure pip_install pip_uninstall "
    "isPipInstallInProgress",
    # Base/Python/slicer/i18n.py
    "slicer.i18n": "tr translate getContext",
    # Base/Python/slicer/testing.py
    "slicer.testing": "exitSuccess exitFailure runUnitTest",
    # Base/Python/slicer/ScriptedLoadableModule.py
    "slicer.ScriptedLoadableModule": "ScriptedLoadableModule ScriptedLoadableModuleWidget ScriptedLoadableModuleLogic "
    "ScriptedLoadableModuleTest",
    # Base/Python/slicer/parameterNodeWrapper/__init__.py and its files
    "slicer.parameterNodeWrapper": "parameterNodeWrapper parameterPack Choice Decimals Default Exclude Maximum Minimum "
    "RangeBounds SingleStep Validator WithinRange",
    # Modules/Scripted/SampleData/SampleData.py
    "SampleData": "SampleDataLogic SampleDataSource downloadSample downloadSamples downloadFromURL",
    # SlicerPyTorch: PyTorchUtils/PyTorchUtils.py
    "PyTorchUtils": "PyTorchUtilsLogic",
}

# What the application adds to the package: Base/Python/slicer/slicerqt.py, Base/QTGUI/qSlicerPythonManager.cxx and the
# application logics.
APPLICATION_ONLY = "app modules mrmlScene util cli packaging testing i18n dicomDatabase moduleNames"
APPLICATION_CLASS = "qSlicerApplication"
